"""No sentence contradicts the numbers beside it, whatever the counts were."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.rollouts.checks import (
    CheckSettings,
    Frame,
    judge_error_rate,
    judge_latency,
    judge_unanswered,
)
from apps.rollouts.comparison import Series
from apps.rollouts.eprocess import Counts
from apps.rollouts.segments import SLICES
from apps.rollouts.verdicts import CheckResult, Verdict

NUMBERS = re.compile(r"([\d.]+)% vs (?:stable )?([\d.]+)%, margin ([\d.]+)%")
RATES = (0.0, 0.001, 0.01, 0.011, 0.02, 0.03, 0.1, 0.5, 1.0)


@st.composite
def evidence(draw: st.DrawFn, slices: int = SLICES) -> Series:
    """Some stretches of some intervals, each with its own share, traffic and rates, and bursts."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    parts, steps = [], []
    for step in range(draw(st.integers(1, 3))):
        share, per_slice = draw(st.sampled_from([0.01, 0.05, 0.5])), draw(st.integers(2, 2_000))
        canary, control = draw(st.sampled_from(RATES)), draw(st.sampled_from(RATES))
        shape = (draw(st.integers(1, 40)), slices)
        n1, n0 = rng.poisson(per_slice * share, shape), rng.poisson(per_slice * (1 - share), shape)
        lost = rng.random(shape) < draw(st.sampled_from([0.0, 0.02]))
        a = np.where(lost, n1, rng.binomial(n1, canary))
        parts.append(np.stack([n1, a, n0, rng.binomial(n0, control)]))
        steps += [step] * shape[0]
    return Series(Counts(*np.concatenate(parts, axis=1).astype(float)), np.array(steps))


def agrees(result: CheckResult) -> None:
    rows = [tuple(map(float, row)) for row in NUMBERS.findall(result.reason)]
    surplus = [round(canary - control - margin, 9) for canary, control, margin in rows]
    if "worse by more than the margin (" in result.reason or "exceeds the margin" in result.reason:
        assert result.verdict is Verdict.FAIL
        assert max(surplus) > 0.0, result.reason
    if "not worse by the margin" in result.reason:
        assert result.verdict is Verdict.PASS
        assert max(surplus) <= 0.0, result.reason
    if "proven worse" in result.reason or "a little worse" in result.reason:
        assert any(canary > control for canary, control, _ in rows), result.reason
    if result.verdict is not Verdict.NO_DATA:
        assert rows, result.reason


MODES = st.sampled_from(["any_regression", "beyond_margin"])


@settings(max_examples=150, deadline=None)
@given(evidence(), MODES, st.booleans())
def test_a_rates_reason_agrees_with_its_numbers(series: Series, mode: str, loud: bool) -> None:
    how = CheckSettings(evidence_mode=mode)  # type: ignore[arg-type]
    for judge in (judge_error_rate, judge_unanswered):
        agrees(judge(series, how, Frame(loud=loud)))


@settings(max_examples=60, deadline=None)
@given(st.data(), MODES)
def test_latencys_reason_agrees_with_its_numbers(data: st.DataObject, mode: str) -> None:
    median = data.draw(evidence(slices=1))
    counts = median.counts
    rng = np.random.default_rng(1)

    def further(part: float) -> Series:
        events = (counts.canary_events, counts.control_events)
        a, b = (rng.binomial(each.astype(int), part).astype(float) for each in events)
        return Series(Counts(counts.canary_n, a, counts.control_n, b), median.steps)

    how = CheckSettings(evidence_mode=mode)  # type: ignore[arg-type]
    agrees(judge_latency(further(0.3), further(0.1), how, p50=median, frame=Frame(loud=True)))
