"""Guardrails on rare events get verdicts at the right error rates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.data import (
    ArmData,
    ArmSpec,
    ExperimentData,
    MetricData,
    MetricSpec,
    Phase,
)
from apps.experiments.stats.estimates import compare_arms, rare_event_counts
from apps.experiments.stats.margins import judge_margin
from apps.experiments.stats.rare_rates import EventCounts, difference_bounds, gain_bounds
from apps.experiments.stats.rate_scores import RateRegion
from apps.experiments.stats.report import MetricReport, make_report

Floats = NDArray[np.float64]
Counts = NDArray[np.int_]

SPEC = MetricSpec("failed", "guardrail", "proportion", is_increase_better=False)
ARMS = (ArmSpec("a", 5_000, is_control=True), ArmSpec("b", 5_000, is_control=False))


def guardrail(control: EventCounts, treatment: EventCounts, margin: float) -> MetricData:
    arms = {
        name: ArmData(Comoments(s.n, (s.events / s.n,), (s.events * (1.0 - s.events / s.n),)))
        for name, s in (("a", control), ("b", treatment))
    }
    return MetricData(replace(SPEC, margin=margin), arms)


def judged(
    control: EventCounts, treatment: EventCounts, margin: float, *, is_final: bool = False
) -> MetricReport:
    """Return the report of a guardrail on failures; at the end all units are exposed."""
    metric = guardrail(control, treatment, margin)
    primary = MetricData(MetricSpec("clicked", "primary", "proportion"), metric.arms)
    units = {"a": control.n, "b": treatment.n}
    phase = Phase(units, {"a": 0.5, "b": 0.5})
    data = ExperimentData(ARMS, units, (phase,), (primary, metric))
    planned = sum(units.values())
    report = make_report(data, alpha=0.05, planned_units=planned, is_final=is_final)
    return report.metrics[1]


def state(report: MetricReport) -> str:
    verdict = report.comparisons[0].non_inferiority
    assert verdict is not None
    return verdict.state


def read(control: EventCounts, treatment: EventCounts, margin: float) -> str:
    """Return the non-inferiority verdict before the end, at 5 %."""
    metric = guardrail(control, treatment, margin)
    verdict = judge_margin(
        metric.spec, compare_arms(metric, "a", "b"), rare_event_counts(metric, "a", "b"),
        alpha=0.05, planned_units=20_000, is_final=False, is_worse=False, stop_reason="",
    )  # fmt: skip
    assert verdict is not None
    return verdict.state


def test_failures_without_any_event_are_within_the_margin() -> None:
    report = judged(EventCounts(10_000, 0), EventCounts(10_000, 0), 0.002)

    assert state(report) == "not-worse"
    assert report.verdict == "No arm is worse by the margin: no unit has the event."


def test_a_margin_that_so_few_units_cannot_show_stays_undecided() -> None:
    assert state(judged(EventCounts(1_000, 0), EventCounts(1_000, 0), 0.002)) == "undecided"
    assert (
        state(judged(EventCounts(1_000, 0), EventCounts(1_000, 0), 0.005, is_final=True))
        == "not-worse"
    )


def test_failures_of_one_arm_alone_are_worse_once_control_is_known_to_have_fewer() -> None:
    assert read(EventCounts(900, 0), EventCounts(900, 9), 0.0001) == "undecided"
    assert read(EventCounts(9_000, 0), EventCounts(900, 9), 0.0001) == "worse"


@pytest.mark.parametrize("events", [(0, 0), (2, 5), (40, 40)])
def test_the_bounds_at_the_end_are_those_of_scipy(events: tuple[int, int]) -> None:
    a, b = (binomtest(k, 40).proportion_ci(0.95, "exact") for k in events)

    counts = (EventCounts(40, events[0]), EventCounts(40, events[1]))
    bounds = gain_bounds(*counts, alpha=0.05, is_increase_better=False, is_final=True)

    assert bounds == pytest.approx((a.low - b.high, a.high - b.low), abs=1e-12)
    better = gain_bounds(*counts, alpha=0.05, is_increase_better=True, is_final=True)
    assert better == pytest.approx((b.low - a.high, b.high - a.low), abs=1e-12)


def grown(
    rng: np.random.Generator, looks: Counts, rates: tuple[float, float], runs: int
) -> tuple[Floats, Floats]:
    """Return units and events by arm, run and look."""
    steps = np.array(
        [rng.binomial(np.diff(looks, prepend=0), p, (runs, len(looks))) for p in rates]
    )
    events = np.cumsum(steps, axis=2).astype(float)
    return np.broadcast_to(looks.astype(float), events.shape), events


def test_bounds_before_the_end_hold_at_every_look() -> None:
    looks, runs, p = np.geomspace(10, 20_000, 60).astype(int), 600, (0.001, 0.003)
    n, events = grown(np.random.default_rng(5), looks, p, runs)

    low, high = difference_bounds(n, events, alpha=0.05, is_final=False)

    missed = ((low > p[1] - p[0]) | (high < p[1] - p[0])).any(axis=1)
    # The error is 5 % on each side; the half of each arm's bound makes it conservative.
    assert missed.mean() <= 0.1


@pytest.mark.parametrize("rate", [0.0, 0.0005])
def test_an_arm_that_is_worse_by_the_margin_seldom_passes_at_sixty_looks(rate: float) -> None:
    looks, runs, margin = np.geomspace(100, 20_000, 60).astype(int), 300, 0.002
    n, events = grown(np.random.default_rng(6), looks, (rate, rate + margin), runs)
    # A look can pass by the bounds of rare events, or by a score of at least 1.6.
    rare = difference_bounds(n, events, alpha=0.05, is_final=False)[1] < margin
    score = RateRegion(n[0], events[0], n[1], events[1]).score_of(margin) < -1.6
    passed = sum(
        any(
            read(
                *(EventCounts(int(looks[look]), int(events[arm, run, look])) for arm in (0, 1)),
                margin,
            )
            == "not-worse"
            for look in np.flatnonzero((rare | score)[run])
        )
        for run in range(runs)
    )
    # At most 5 %, of 300 runs: 26 are three standard deviations above.
    assert passed <= 26


def test_bounds_of_many_comparisons_are_those_of_each() -> None:
    n, events = np.array([[900.0, 40.0], [400.0, 40.0]]), np.array([[3.0, 40.0], [0.0, 7.0]])
    for is_final in (False, True):
        low, high = difference_bounds(n, events, alpha=0.05, is_final=is_final)
        for i in (0, 1):
            each = gain_bounds(
                *(EventCounts(int(n[arm, i]), int(events[arm, i])) for arm in (0, 1)),
                alpha=0.05, is_increase_better=True, is_final=is_final,
            )  # fmt: skip
            assert each == (low[i], high[i])
