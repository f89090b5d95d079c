"""A canary with four times the refunds does not pass while it is too small to have one."""

from __future__ import annotations

import numpy as np
import pytest

from apps.experiments.outcome_judge import CANARY, CONTROL, judge_outcome, to_json
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.data import ArmData, MetricData, MetricKind, MetricSpec
from apps.rollouts.check_kinds import OUTCOME, CheckDocument
from apps.rollouts.checks import CheckSettings
from apps.rollouts.verdicts import CheckResult

UNDECIDED = {"insufficient-sample", "inconclusive"}


def judge(
    kind: MetricKind,
    canary: tuple[int, int],
    control: tuple[int, int],
    margin: float,
    *,
    amount: float = 1.0,
    is_increase_better: bool = False,
) -> CheckResult:
    """Judge arms of (units, units with an event of that amount), the others having 0."""
    arms = {
        side: ArmData(Comoments.of(np.where(np.arange(n) < events, amount, 0.0)[:, None]))
        for side, (n, events) in ((CANARY, canary), (CONTROL, control))
    }
    spec = MetricSpec("m", "guardrail", kind, is_increase_better=is_increase_better)
    observed = {
        "metric": "m",
        "data": to_json(MetricData(spec, arms)),
        "exposed": {"canary": canary[0], "control": control[0]},
        "window_s": None,
        "until_step": 0,
    }
    check = CheckDocument(check=OUTCOME, settings={"metric": "m", "margin": margin})
    return judge_outcome(check, observed, CheckSettings(alpha=0.01, guardrails=2))


@pytest.mark.parametrize(
    ("kind", "amount", "margin"),
    [("proportion", 1.0, 0.03), ("mean", 20.0, 0.6)],
    ids=["share", "sum"],
)
def test_a_canary_without_a_refund_yet_does_not_pass(
    kind: MetricKind, amount: float, margin: float
) -> None:
    # With 4 %, one canary of 110 units in a hundred has no refund; 1 % of stable's units had one.
    result = judge(kind, (110, 0), (2_090, 21), margin, amount=amount)

    assert result.verdict.value in UNDECIDED


@pytest.mark.parametrize(
    ("kind", "amount", "margin"),
    [("proportion", 1.0, 0.001), ("mean", 20.0, 0.02)],
    ids=["share", "sum"],
)
def test_a_canary_without_a_buyer_yet_does_not_fail(
    kind: MetricKind, amount: float, margin: float
) -> None:
    # Every third healthy canary of 110 units has no buyer where 1 % buy.
    result = judge(kind, (110, 0), (2_090, 21), margin, amount=amount, is_increase_better=True)

    assert result.verdict.value in UNDECIDED


def test_many_units_are_decisive() -> None:
    assert judge("proportion", (3_000, 30), (57_000, 570), 0.03).verdict == "pass"
    assert judge("proportion", (3_000, 330), (57_000, 570), 0.03).verdict == "fail"
