"""Guardrails on rates for any arm sizes: an arm worse by exactly the margin, and its interval.

Counts of whole runs are drawn at once. The product's score at the margin selects the looks that may
decide; the product's `judge_margin` evaluates those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import read_fixed
from apps.experiments.stats.data import ArmData, MetricData, MetricSpec
from apps.experiments.stats.estimates import compare_arms, rare_event_counts
from apps.experiments.stats.margins import judge_margin
from apps.experiments.stats.rate_scores import RateRegion
from bench.bars import Bar, Rng, share

Counts = NDArray[np.int_]

LEVEL = 0.025
LOOKS = 100
UNITS = 20_000
SHARES = (0.5, 0.2, 0.1, 0.05, 0.01)
# Scores below these never decide: the limit is 1.96 at the end, less the effect of skewness or of
# Fisher's test, and more than 3 before the end.
SCORE_MIN, SEQUENTIAL_SCORE_MIN = 1.2, 2.2
STATES: tuple[Literal["not-worse", "worse"], ...] = ("not-worse", "worse")


@dataclass(frozen=True)
class Case:
    """Control's rate, and the margin, by which the treatment is worse."""

    name: str
    rate: float
    margin: float
    is_increase_better: bool

    @property
    def treatment(self) -> float:
        return self.rate + (-self.margin if self.is_increase_better else self.margin)


CASES = (
    Case("errors of 2 %, 1 point worse", 0.02, 0.01, False),
    Case("conversions of 10 %, 2 points worse", 0.10, 0.02, True),
)


def bars(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on false verdicts at 100 looks and at the end, and on coverage."""
    for case in CASES:
        for part in SHARES:
            at = f"{case.name}, {1.0 - part:.0%} to {part:.0%}"
            counts = drawn(rng, case, runs, part)
            for state in STATES:
                early = ever(case, counts, state)
                name = f"falsely {'within' if state == 'not-worse' else 'beyond'} the margin"
                yield share(f"{name}, {LOOKS} looks: {at}", early, runs, LEVEL)
            many = at_the_end(rng, case, 3 * runs, part)
            doubtful = many[np.abs(_scores(case, many.T)) > SCORE_MIN]
            states = [judged(case, row, is_final=True) for row in doubtful]
            for state in STATES:
                name = f"falsely {'within' if state == 'not-worse' else 'beyond'} the margin"
                yield share(f"{name}, the end: {at}", states.count(state), len(many), LEVEL)
            missed = sum(not _holds(case, row) for row in doubtful)
            off = share("", missed, len(many), LEVEL)
            name = f"97.5 % interval, off by: {at}"
            yield Bar(name, abs(off.measured - LEVEL), off.error, 0.007)


def drawn(rng: Rng, case: Case, runs: int, part: float) -> Counts:
    """Return units and events of control, then of treatment: (4, runs, looks)."""
    each = UNITS // LOOKS
    treated = rng.binomial(each, part, (runs, LOOKS))
    rows = (
        each - treated, rng.binomial(each - treated, case.rate),
        treated, rng.binomial(treated, case.treatment),
    )  # fmt: skip
    return np.cumsum(np.stack(rows), axis=2)


def at_the_end(rng: Rng, case: Case, runs: int, part: float) -> Counts:
    """Return the same at the planned end only: (runs, 4)."""
    n = rng.binomial(UNITS, part, runs)
    control = rng.binomial(UNITS - n, case.rate)
    return np.column_stack([UNITS - n, control, n, rng.binomial(n, case.treatment)])


def ever(case: Case, counts: Counts, state: str) -> int:
    """Count the runs in which any look gives the verdict `state`."""
    scores = _scores(case, counts)
    better = scores if case.is_increase_better else -scores
    doubtful = (better if state == "not-worse" else -better) > SEQUENTIAL_SCORE_MIN
    return sum(
        any(
            judged(case, counts[:, run, look], is_final=False) == state
            for look in np.flatnonzero(doubtful[run])[::-1]
        )
        for run in range(counts.shape[1])
    )


def _scores(case: Case, counts: Counts) -> NDArray[np.float64]:
    """Return the score of the true difference; 0 if an arm has no units."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = RateRegion(*counts).score_of(case.treatment - case.rate)
    return np.nan_to_num(scores)


def judged(case: Case, row: Counts, *, is_final: bool) -> str:
    """Return the product's verdict for units and events of control and treatment."""
    metric = _metric(case, row)
    verdict = judge_margin(
        metric.spec, compare_arms(metric, "a", "b"), rare_event_counts(metric, "a", "b"),
        alpha=LEVEL, planned_units=UNITS, is_final=is_final, is_worse=False, stop_reason="",
    )  # fmt: skip
    return verdict.state if verdict else ""


def _holds(case: Case, row: Counts) -> bool:
    metric = _metric(case, row)
    reading = read_fixed(compare_arms(metric, "a", "b").difference, LEVEL)
    difference = case.treatment - case.rate
    return reading.low is None or reading.high is None or reading.low <= difference <= reading.high


def _metric(case: Case, row: Counts) -> MetricData:
    spec = MetricSpec("m", "guardrail", "proportion", case.is_increase_better, margin=case.margin)
    arms = {}
    for name, (n, events) in zip("ab", row.reshape(2, 2).tolist(), strict=True):
        mean = events / n if n else 0.0
        arms[name] = ArmData(Comoments(n, (mean,), (events * (1.0 - mean),)))
    return MetricData(spec, arms)
