"""The error rates of a whole plan: bounds, simulations, and unknown ones."""

from __future__ import annotations

import pytest

from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.plan_risks import risks_of_plan
from apps.rollouts.plans import PlanDocument, StepDocument

THRESHOLD = CheckDocument(check="error-threshold", settings={"margin_bp": 100})
OUTSIDE = CheckDocument(check="prometheus", settings={"query": "up", "at_least": 1})


def plan(*checks: str | CheckDocument) -> PlanDocument:
    steps = tuple(StepDocument(weight_bp=bp, checks=checks) for bp in (500, 2_500, 5_000))
    return PlanDocument(name="p", steps=steps)


def test_statistical_checks_share_the_plans_level() -> None:
    risks = risks_of_plan(plan("error-rate", "latency"))

    assert risks.false_rollback == pytest.approx(0.01)
    assert [check.false_pass for check in risks.checks] == [0.1, 0.1]


def test_a_threshold_is_simulated_and_adds_to_the_plans_risk() -> None:
    risks = risks_of_plan(plan("error-rate", THRESHOLD))
    threshold = risks.checks[1]

    assert threshold.basis == "simulated"
    assert threshold.false_rollback is not None
    assert threshold.false_pass is not None
    assert threshold.false_rollback > 0.05
    assert threshold.false_pass < 0.5
    assert risks.false_rollback == pytest.approx(threshold.false_rollback + 0.01)


def test_the_risks_of_external_checks_are_unknown() -> None:
    risks = risks_of_plan(plan("error-rate", OUTSIDE))

    assert risks.false_rollback is None
    assert risks.unknown == ("prometheus",)


def test_a_signal_rolls_nothing_back() -> None:
    signal = CheckDocument(check="error-threshold", mode="signal")
    (risk,) = risks_of_plan(plan(signal)).checks

    assert risk.false_rollback == 0.0
    assert risk.false_pass is not None
