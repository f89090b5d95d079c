"""What the views of experiments share: who may act, and what a person saw."""

from __future__ import annotations

from apps.experiments.models import Experiment
from apps.experiments.selectors import experiments as selectors
from apps.lib.errors import Invalid
from apps.lib.pages import PageRequest
from apps.models.access import require_role
from apps.models.models import Role


def operated(request: PageRequest, name: str) -> Experiment:
    """Return the experiment that the request's sender may move. Raises NotFound, Forbidden."""
    found = selectors.find_experiment(name)
    require_role(request.user, found.model, Role.OPERATOR)
    return found


def is_fresh(request: PageRequest, chosen: Experiment) -> bool:
    """Say whether the page showed the experiment as it is; what is stale is refused unasked."""
    return request.POST.get("revision") == str(chosen.revision)


def seen_revision(request: PageRequest) -> int:
    """Return the revision that the page showed. Raises Invalid when it does not say."""
    given = request.POST.get("revision", "")
    if not given.isdecimal() or len(given) > 9:
        raise Invalid("The page did not say which state of the experiment it showed; reload it.")
    return int(given)
