"""A rollback went to the wrong earlier revision (kserve #2097 #2040).

Here a rollback names its target: the previous stable version, or the requested one.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from apps.lib.clock import database_now
from apps.lib.errors import Conflict, Invalid
from apps.models.models import RegisteredModel
from apps.rollouts.models import Rollout
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.services import abort_rollout, promote_now, rollback_model, start_rollout
from apps.rollouts.states import LIVE_PHASES
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import ANNA, latest, make_instance, make_model

pytestmark = pytest.mark.django_db


@pytest.fixture
def model() -> RegisteredModel:
    plan = PlanDocument(name="bare", steps=(StepDocument(weight_bp=500, checks=()),))
    save_plan(document=plan, is_default=True, actor=ANNA)
    make_instance()
    return make_model(versions=4)


def settle() -> None:
    for _ in range(4):
        if Rollout.objects.filter(phase__in=LIVE_PHASES).exists():
            tick_rollouts()


def live_through(model: RegisteredModel, history: Sequence[str]) -> None:
    """Run a history of rollouts: `3` promotes version 3, `!3` starts it and aborts."""
    for word in history:
        target = model.versions.get(number=int(word.strip("!")))
        now = database_now()
        rollout = start_rollout(
            model=model, target=target, actor=ANNA, now=now, overrides=["quarantine"]
        )
        tick_rollouts()
        tick_rollouts()
        end = abort_rollout if word.startswith("!") else promote_now
        end(rollout=rollout, actor=ANNA, now=database_now())
        settle()


def back(model: RegisteredModel, to: int | None = None) -> str | None:
    version = model.versions.get(number=to) if to else None
    rollback_model(model=model, actor=ANNA, now=database_now(), to=version)
    settle()
    return latest().models["digits"].stable


@pytest.mark.parametrize(
    ("history", "previous"),
    [(["2"], "1"), (["2", "3"], "2"), (["2", "!3"], "1"), (["3", "2", "!4", "!3"], "3")],
)
def test_a_rollback_goes_to_the_previous_stable_version(
    model: RegisteredModel, history: list[str], previous: str
) -> None:
    live_through(model, history)
    assert back(model) == previous


def test_a_second_rollback_is_refused(
    model: RegisteredModel,
) -> None:
    live_through(model, ["2"])
    back(model)
    with pytest.raises(Conflict, match="no previous stable version"):
        back(model)


def test_a_rollback_may_name_any_earlier_version_and_no_other(model: RegisteredModel) -> None:
    live_through(model, ["2", "3", "!4"])
    with pytest.raises(Invalid, match=r"digits:4 was never stable.* Earlier stable versions: 2, 1"):
        back(model, to=4)
    assert back(model, to=1) == "1"
