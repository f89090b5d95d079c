"""Every version is slower than in the morning: no version is rolled back for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest

from apps.rollouts.analysis import StepInputs, judge_checks
from apps.rollouts.decisions import Action, JudgedCheck, StepClock, StepFacts, decide_step
from apps.rollouts.evidence import Arm, Interval, LatencyReference
from apps.rollouts.plan_templates import TEMPLATES
from apps.rollouts.plans import PlanDocument, StepDocument
from contract.histogram import index_of

START = datetime(2026, 1, 5, 6, tzinfo=UTC)
MORNING_US, SLOWER = 20_000.0, 1.3
REFERENCE = LatencyReference(
    p50=index_of(MORNING_US), p95=index_of(38_000), p99=index_of(50_000), n=5_000, frozen_at=START
)
# The default plan without a holdback.
TO_THE_END = PlanDocument(
    name="old", steps=tuple(StepDocument(weight_bp=bp) for bp in (500, 5_000, 10_000))
)
DEFAULT = msgspec.structs.replace(TEMPLATES[0].document.as_followed(), interval_s=60)


def arm(rng: np.random.Generator, n: int, slower: float) -> Arm:
    latencies = MORNING_US * slower * rng.lognormal(0.0, 0.4, n)
    indexes, counts = np.unique([index_of(us) for us in latencies], return_counts=True)
    histogram = dict(zip(indexes.tolist(), counts.tolist(), strict=True))
    return Arm(n, 0, n, histogram, n)


def last_step(plan: PlanDocument, seed: int) -> list[Interval]:
    """Return 30 min of the last step in which every version is slower than in the morning."""
    rng, last = np.random.default_rng(seed), len(plan.steps) - 1
    canary_n = rng.binomial(1_000, plan.steps[last].weight_bp / 10_000, 30)
    return [
        Interval(
            last,
            START + timedelta(hours=3, minutes=minute),
            arm(rng, int(n), SLOWER),
            arm(rng, 1_000 - int(n), SLOWER),
        )
        for minute, n in enumerate(canary_n)
    ]


@pytest.mark.parametrize(
    ("plan", "actions"), [(DEFAULT, {"advance", "hold"}), (TO_THE_END, {"pause"})]
)
def test_a_slower_day_rolls_no_version_back(plan: PlanDocument, actions: set[str]) -> None:
    actions_taken = set()
    for seed in range(5):
        inputs = StepInputs(plan, len(plan.steps) - 1, last_step(plan, seed), REFERENCE, 5_000)
        checks = plan.steps[-1].check_documents
        answers = [JudgedCheck(c, r) for c, r in zip(checks, judge_checks(inputs), strict=True)]
        clock = StepClock(START, START + timedelta(days=1))
        actions_taken.add(decide_step(answers, StepFacts(clock, START, 1_000, 0)).action.value)
    assert Action.ROLL_BACK.value not in actions_taken
    assert actions_taken <= actions
