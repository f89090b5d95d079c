"""With little traffic a plan passes in about the time that it estimates before the start."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from apps.lib.clock import database_now
from apps.rollouts.analysis import StepInputs, judge_checks
from apps.rollouts.decisions import Action, Decision, JudgedCheck, StepClock, StepFacts, decide_step
from apps.rollouts.estimates import UsualTraffic, estimate_plan
from apps.rollouts.evidence import Arm, Interval, LatencyReference
from apps.rollouts.latency_baseline import reference_of
from apps.rollouts.plan_templates import TEMPLATES
from apps.rollouts.plans import PlanDocument, from_json
from apps.rollouts.selectors.estimates import times_of_model
from apps.rollouts.sparse_traffic import is_fresh, pool_sparse
from contract.histogram import index_of
from contract.messages import CLUSTERS, ClusterCounts
from tests.rollouts.factories import make_baking, make_model, send

START = datetime(2026, 1, 5, tzinfo=UTC)
PLANS = {template.document.name: template.document.as_followed() for template in TEMPLATES}
DEFAULT, LITTLE = PLANS["canary"], PLANS["little-traffic"]
MEDIAN_US, SIGMA = 20_000.0, 0.4
REFERENCE = LatencyReference(
    p50=index_of(MEDIAN_US), p95=index_of(38_600), p99=index_of(50_700), n=500, frozen_at=START
)


def arm(rng: np.random.Generator, expected: float) -> Arm:
    n = int(rng.poisson(expected))
    latency: dict[int, int] = {}
    for us in MEDIAN_US * rng.lognormal(0.0, SIGMA, n):
        latency[index_of(us)] = latency.get(index_of(us), 0) + 1
    clusters = np.bincount(rng.integers(0, CLUSTERS, n), minlength=CLUSTERS)
    counts = {c: ClusterCounts(int(k), int(k)) for c, k in enumerate(clusters) if k}
    return Arm(n, int(rng.binomial(n, 0.005)), n, latency, n, 0, counts)


def first_decision(
    plan: PlanDocument, per_second: float, seed: int, expected_s: float
) -> tuple[Decision, float]:
    """Simulate the first step of a version equal to stable; return the decision and its time."""
    rng, step = np.random.default_rng(seed), plan.steps[0]
    interval_s, share = plan.interval_of(0), step.weight_bp / 10_000
    due = START + plan.bake_of(0)
    clock = StepClock(
        due, START + plan.extend_max * plan.bake_of(0), START + timedelta(seconds=plan.wait_max_s)
    )
    frozen: list[Interval] = []
    # An evaluation reads all intervals, so evaluate only about 12 times until the expected time.
    looks = max(1, round(expected_s / interval_s / 12))
    while True:
        at = START + timedelta(seconds=interval_s * len(frozen))
        sides = (
            arm(rng, per_second * share * interval_s),
            arm(rng, per_second * (1 - share) * interval_s),
        )
        frozen.append(Interval(0, at, *sides))
        if at < due or len(frozen) % looks:
            continue
        fresh = is_fresh(frozen, 0, needs_control=True, interval_s=interval_s, now=at)
        inputs = StepInputs(plan, 0, pool_sparse(frozen), REFERENCE, 500, is_fresh=fresh)
        answers = [
            JudgedCheck(c, r)
            for c, r in zip(step.check_documents, judge_checks(inputs), strict=True)
        ]
        decision = decide_step(answers, StepFacts(clock, at, 10_000, 0))
        if decision.action is not Action.HOLD or "the checks pass" in decision.reason:
            return decision, (at - START).total_seconds()


@pytest.mark.parametrize(("plan", "per_second"), [(DEFAULT, 2.7 / 0.95), (LITTLE, 3 / 3_600)])
def test_a_model_with_little_traffic_passes_in_about_the_estimated_time(
    plan: PlanDocument, per_second: float
) -> None:
    expected_s = estimate_plan(plan, UsualTraffic(per_second, error_rate=0.005))[0].expected_s
    assert expected_s is not None
    ended = [first_decision(plan, per_second, seed, expected_s) for seed in range(3)]
    assert {decision.action for decision, _ in ended} == {Action.ADVANCE}
    assert 0.3 * expected_s < np.median([took_s for _, took_s in ended]) < 2.0 * expected_s


@pytest.mark.django_db
def test_a_reference_reaches_back_beyond_half_an_hour() -> None:
    model = make_model()
    now = database_now()
    for minute in range(24 * 60):
        send(
            "digits",
            1,
            at=now - timedelta(minutes=minute, seconds=1),
            requests=162,
            units=162,
            latency={"110": 150, "120": 12},
        )
    rollout = make_baking(model)
    reference, n = reference_of(rollout, from_json(rollout.plan_document), database_now())
    assert reference is not None
    assert n == reference.n >= 5_000
    (time,) = times_of_model(DEFAULT, model, database_now())
    assert time.rate == "2.7 requests per second"
    assert time.can_decide
