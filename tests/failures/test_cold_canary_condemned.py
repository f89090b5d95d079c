"""A canary with a cold cache was compared with a warm fleet (flagger #225).

Here a plan can use a baseline of the canary's size: units of stable that are counted separately and
drawn like the canary's. Cache hits count in no latency and no error rate.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from apps.rollouts.evidence import closed_intervals
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from contract.routing import BASELINE, CanarySplit
from tests.rollouts.factories import ANNA, latest, make_baking, make_model, send

pytestmark = pytest.mark.django_db


def test_a_canary_is_compared_with_a_baseline_of_its_size() -> None:
    plan = PlanDocument(name="fair", steps=(StepDocument(weight_bp=500),), control="equal")
    save_plan(document=plan, is_default=True, actor=ANNA)
    rollout = make_baking(make_model())
    split = latest().models["digits"].split
    assert isinstance(split, CanarySplit)
    assert split.baseline_bp == split.weight_bp == 500
    at = rollout.started_at - timedelta(seconds=30)
    of = {"split": str(rollout.pk), "generation": rollout.generation, "at": at}
    for variant, n in (("canary", 50), (BASELINE, 49), ("stable", 900)):
        send("digits", 1, variant=variant, units=n, interval_started_at=at, **of)
    (interval,) = closed_intervals(rollout, 10, rollout.started_at, control=BASELINE)
    assert (interval.canary.n, interval.control.n) == (50, 49)


def test_the_baseline_contains_no_unit_of_the_canary() -> None:
    for weight_bp in range(0, 10_001, 250):
        step = StepDocument(weight_bp=weight_bp)
        plan = PlanDocument(name="fair", steps=(step,), control="equal")
        assert weight_bp + plan.baseline_of(0) <= 10_000
