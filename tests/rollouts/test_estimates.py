"""How long a plan takes: the expectation agrees with what the checks themselves need."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest

from apps.rollouts.analysis import StepInputs, judge_checks
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.estimates import UsualTraffic, estimate_plan
from apps.rollouts.evidence import Arm, Interval
from apps.rollouts.plan_templates import TEMPLATES
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.selectors.estimates import describe_step, time_of, times_at_rates
from apps.rollouts.verdicts import Verdict

START = datetime(2026, 1, 1, tzinfo=UTC)
DEFAULT = TEMPLATES[0].document
HOUR_S, DAY_S = 3_600.0, 86_400.0


def one_step(*checks: str | CheckDocument, weight_bp: int = 500, **step: int) -> PlanDocument:
    document = StepDocument(weight_bp=weight_bp, bake_s=60, checks=checks, **step)
    return PlanDocument(name="one", steps=(document,))


def expected_s(plan: PlanDocument, per_second: float, error_rate: float = 0.01) -> float | None:
    return estimate_plan(plan, UsualTraffic(per_second, error_rate))[0].expected_s


def answers_until_pass(plan: PlanDocument, rate: float, seed: int) -> float:
    """Return the simulated number of the canary's exposures until the error rate passes."""
    rng, share = np.random.default_rng(seed), plan.steps[0].weight_bp / 10_000
    intervals: list[Interval] = []
    for i in range(400):
        canary, control = int(rng.poisson(400 * share)), int(rng.poisson(400 * (1 - share)))
        arms = [Arm(n, int(rng.binomial(n, rate)), n) for n in (canary, control)]
        intervals.append(Interval(0, START + timedelta(seconds=i), *arms))
        if i % 5 == 0:
            (result,) = judge_checks(StepInputs(plan, 0, intervals, None, 0))
            if result.verdict is Verdict.PASS:
                return sum(each.canary.n for each in intervals)
    return math.inf


@pytest.mark.parametrize(("weight_bp", "rate"), [(500, 0.01), (500, 0.001), (5_000, 0.01)])
def test_the_expected_answers_are_those_that_the_check_needs(weight_bp: int, rate: float) -> None:
    plan = one_step("error-rate", weight_bp=weight_bp)
    needed = float(np.median([answers_until_pass(plan, rate, seed) for seed in range(15)]))
    seconds = expected_s(plan, 1.0, rate)
    assert seconds is not None
    assert 0.5 * needed < seconds * weight_bp / 10_000 < 3.0 * needed


def test_time_is_the_bake_at_high_traffic_and_depends_on_low_traffic() -> None:
    plan = one_step("error-rate", "latency", "sample-ratio")
    much, some, little = (expected_s(plan, rate) or 0.0 for rate in (1e4, 1.0, 0.1))
    assert much == 60
    assert little == pytest.approx(10 * some)


def test_proof_carries_over_to_later_steps() -> None:
    first, *rest = estimate_plan(DEFAULT.as_followed(), UsualTraffic(2.8))
    assert first.expected_s is not None
    assert 1.5 * HOUR_S < first.expected_s < 3 * HOUR_S
    assert {each.expected_s for each in rest} == {1_800.0}


def test_a_step_names_its_slowest_check_and_the_pause() -> None:
    first = estimate_plan(DEFAULT.as_followed(), UsualTraffic(3 / 3_600))[0]
    assert not first.is_in_time
    description = describe_step(first)
    assert "days: latency needs about" in description
    assert "it waits 7 days, then pauses for a person" in description
    assert not time_of(DEFAULT, UsualTraffic(3 / 3_600), "now").can_decide


def test_three_requests_an_hour_are_enough_for_the_plan_made_for_them() -> None:
    little = next(t.document for t in TEMPLATES if t.document.name == "little-traffic")
    time = time_of(little, UsualTraffic(3 / 3_600), "now")
    assert time.can_decide
    assert time.expected_s is not None
    assert time.expected_s < 7 * DAY_S
    assert "the approval of a person not counted" in time.summary


def test_no_traffic_and_no_control_are_distinguished() -> None:
    (none,) = estimate_plan(one_step("error-rate"), UsualTraffic(0.0))
    assert "never pass at this traffic" in describe_step(none)
    (alone,) = estimate_plan(one_step("latency", weight_bp=10_000), UsualTraffic(100.0))
    assert "latency can never pass here" in describe_step(alone)


def test_requests_objectives_and_an_equal_slice_are_counted() -> None:
    assert expected_s(one_step(requests_min=500), 1.0) == pytest.approx(10_000)
    strict = CheckDocument(check="error-objective", settings={"limit_bp": 100})
    assert expected_s(one_step(strict), 100.0, 0.02) is None
    assert expected_s(one_step(strict), 100.0, 0.001) is not None
    slice_ = msgspec.structs.replace(one_step("error-rate"), control="equal")
    assert (expected_s(slice_, 1.0) or 0) > (expected_s(one_step("error-rate"), 1.0) or 0)


def test_checks_without_an_estimate_are_named() -> None:
    query = CheckDocument(check="prometheus", settings={"query": "up", "at_most": 1})
    time = time_of(one_step("error-rate", query), UsualTraffic(100.0), "now")
    assert "(prometheus not counted)" in time.summary
    assert [each.period for each in times_at_rates(DEFAULT)][-1] == "3 per hour"
