"""What a person may do in which state: the whole cross-product, and what each refusal leaves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.lib.errors import Conflict
from apps.models.models import LiveSplit
from apps.rollouts import services
from apps.rollouts.models import PublishedTable, Rollout, RolloutEvent
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.states import LIVE_PHASES, Phase
from tests.rollouts.factories import ANNA, latest, make_baking, make_model, make_person

pytestmark = pytest.mark.django_db

ACTIONS: dict[str, Callable[..., Rollout]] = {
    "pause": services.pause_rollout,
    "resume": services.resume_rollout,
    "skip": services.skip_step,
    "approve": services.approve_step,
    "promote": services.promote_now,
    "abort": services.abort_rollout,
    "retry": services.retry_rollout,
}
# Where each action leads from each state; what is not here is refused.
LEADS_TO = {
    ("pause", "baking"): "paused",
    ("resume", "paused"): "baking",
    ("skip", "baking"): "baking",
    ("skip", "paused"): "baking",
    ("approve", "baking"): "baking",
    ("promote", "baking"): "promoting",
    ("promote", "paused"): "promoting",
    **{("abort", str(phase)): "rolling_back" for phase in LIVE_PHASES},
    # What was taken back stays so: aborting it again is no fault.
    ("abort", "rolled_back"): "rolled_back",
    ("abort", "failed"): "failed",
    ("retry", "rolled_back"): "pending",
    ("retry", "failed"): "pending",
}


@pytest.fixture
def rollout() -> Rollout:
    """Return one at its first step, whose gate is a person's."""
    steps = (StepDocument(weight_bp=500, gate="person"), StepDocument(weight_bp=10_000))
    save_plan(document=PlanDocument(name="gated", steps=steps), is_default=True, actor=ANNA)
    return make_baking(make_model())


def put(rollout: Rollout, phase: str) -> None:
    """Put the rollout into a state, with the split that it has there."""
    Rollout.objects.update(phase=phase)
    if phase not in LIVE_PHASES:
        LiveSplit.objects.all().delete()
    rollout.refresh_from_db()


def act(action: str, rollout: Rollout, **more: Any) -> Rollout:
    # Who started it opens none of its gates.
    actor = make_person("bea")
    return ACTIONS[action](rollout=rollout, actor=actor, now=database_now(), **more)


@pytest.mark.parametrize(("action", "phase"), list(product(ACTIONS, [p.value for p in Phase])))
def test_each_action_in_each_state(rollout: Rollout, action: str, phase: str) -> None:
    put(rollout, phase)
    before = (rollout.revision, RolloutEvent.objects.count(), PublishedTable.objects.count())
    if (action, phase) in LEADS_TO:
        assert act(action, rollout).phase == LEADS_TO[action, phase]
        return
    with pytest.raises(Conflict):
        act(action, rollout)
    rollout.refresh_from_db()
    assert rollout.phase == phase
    after = (rollout.revision, RolloutEvent.objects.count(), PublishedTable.objects.count())
    assert after == before


@pytest.mark.parametrize("action", sorted(set(ACTIONS) - {"retry", "abort"}))
def test_whoever_saw_an_older_state_is_refused(rollout: Rollout, action: str) -> None:
    with pytest.raises(Conflict, match="changed in the meantime"):
        act(action, rollout, revision=rollout.revision - 1)


@pytest.mark.parametrize("phase", sorted(LIVE_PHASES - {Phase.ROLLING_BACK}))
def test_after_an_abort_the_target_gets_nothing(rollout: Rollout, phase: str) -> None:
    put(rollout, phase)
    act("abort", rollout)
    route = latest().models["digits"]
    assert (route.stable, route.split) == ("1", None)


def test_the_last_step_is_not_skipped_but_promoted(rollout: Rollout) -> None:
    act("skip", rollout)
    with pytest.raises(Conflict, match="at its last step; promote it now"):
        act("skip", rollout)


def test_a_step_that_opens_by_itself_needs_no_approval(rollout: Rollout) -> None:
    act("skip", rollout)
    with pytest.raises(Conflict, match="Step 2 has no gate"):
        act("approve", rollout)


def test_a_gate_is_opened_once_and_says_by_whom(rollout: Rollout) -> None:
    row = act("approve", rollout)
    assert (row.approved_step, row.approved_by) == (0, "bea")
    with pytest.raises(Conflict, match="already approved by bea"):
        act("approve", row)


def test_a_retry_knows_what_it_tries_again(rollout: Rollout) -> None:
    put(rollout, Phase.FAILED)
    again = act("retry", rollout)
    assert (again.retry_of, again.target) == (rollout, rollout.target)
    assert again.salt != rollout.salt
