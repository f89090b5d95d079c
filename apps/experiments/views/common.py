"""Helpers of the views of experiments: permission checks and revisions."""

from __future__ import annotations

from apps.experiments.models import Experiment
from apps.experiments.selectors import experiments as selectors
from apps.lib.errors import Invalid
from apps.lib.pages import PageRequest
from apps.models.access import require_role
from apps.models.models import Role


def find_for_operator(request: PageRequest, name: str) -> Experiment:
    """Return the experiment if the user is an operator of it. Raises NotFound, Forbidden."""
    experiment = selectors.find_experiment(name)
    require_role(request.user, experiment.model, Role.OPERATOR)
    return experiment


def is_fresh(request: PageRequest, chosen: Experiment) -> bool:
    """Return whether the posted revision is current; a stale action gets no question."""
    return request.POST.get("revision") == str(chosen.revision)


def posted_revision(request: PageRequest) -> int:
    """Return the revision that the page showed. Raises Invalid if it is missing."""
    revision = request.POST.get("revision", "")
    if not revision.isdecimal() or len(revision) > 9:
        raise Invalid("The form has no valid revision of the experiment; reload the page.")
    return int(revision)
