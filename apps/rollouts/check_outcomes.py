"""The rules that turn evidence into a verdict, for one check or for many simulated ones at once.

A check compares one rate, or several that belong together (how many requests are slower than
each of stable's quantiles). Their e-values against "not worse" are averaged with weights fixed
beforehand, which is valid under any dependence between them (Vovk and Wang 2021). Proof of safety
needs every mirror process, hence the smallest one: an average would let a safe p95 pass an unsafe
p99.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apps.rollouts.comparison import Comparison, Look
from apps.rollouts.eprocess import Array, Flags
from apps.rollouts.segments import Carried, Integers

# The evidence that must be left without its best slices, as a natural logarithm.
LOG_LASTING = 1.0


@dataclass(frozen=True)
class Measure:
    """One rate that a check compares. `margin` is the tolerated surplus, as a fraction."""

    label: str
    comparison: Comparison
    margin: float
    weight: float = 1.0


@dataclass(frozen=True)
class Levels:
    """Logarithms of the e-values needed to fail and to promote.

    Evidence of harm must hold without its best `excluded_slices`.
    """

    fail: float
    promote: float
    strict: bool
    samples_min: int
    excluded_slices: int = 0


@dataclass(frozen=True)
class Proof:
    """A process of all measures together; arrays of the runs' shape.

    `which` is the decisive measure: the one with most of the wealth, or the least safe one.
    Rates are that measure's, in the segment from interval `start` to now.
    """

    log_e: Array
    which: Integers
    start: Integers
    canary_rate: Array
    control_rate: Array
    dispersion: Array
    is_lasting: Flags
    is_beyond: Flags

    @property
    def difference(self) -> Array:
        result: Array = self.canary_rate - self.control_rate
        return result


@dataclass(frozen=True)
class Ruling:
    """The evidence of the first `now` intervals. Of the three flags, the first one set decides."""

    margin: Proof
    zero: Proof
    mirror: Proof
    is_worse: Flags
    is_regression_beyond: Flags
    is_safe: Flags


def rule(
    measures: Sequence[Measure],
    now: int,
    levels: Levels,
    time_variances: Sequence[Array] | None = None,
) -> Ruling:
    """Apply the rules to the first `now` intervals; at least one is required."""
    variances: Sequence[Array | None] = time_variances or [None] * len(measures)
    looks = [
        each.comparison.look(now, time_variance)
        for each, time_variance in zip(measures, variances, strict=True)
    ]
    weights = np.log([each.weight for each in measures])
    weights -= np.logaddexp.reduce(weights)
    margin = _joint("margin", measures, looks, weights, levels)
    zero = _joint("zero", measures, looks, weights, levels)
    mirror = _least_safe(measures, looks)
    is_worse = (margin.log_e >= levels.fail) & margin.is_beyond & margin.is_lasting
    regression = (zero.log_e >= levels.fail) & zero.is_beyond & zero.is_lasting
    canary_n = measures[0].comparison.paces[0].n[..., :now].sum(axis=-1)
    is_safe = (
        (mirror.log_e >= levels.promote)
        & (canary_n >= levels.samples_min)
        & _are_within(measures, mirror.start, now)
        # Proof from earlier steps does not pass a step whose own estimate exceeds the margin.
        & _are_within(measures, np.full(mirror.start.shape, _step_began(measures, now)), now)
    )
    return Ruling(margin, zero, mirror, is_worse, regression & (not levels.strict), is_safe)


def _joint(
    process: str,
    measures: Sequence[Measure],
    looks: Sequence[Look],
    weights: Array,
    levels: Levels,
) -> Proof:
    carried: list[Carried] = [getattr(look, process) for look in looks]
    wealth = np.stack([each.log_e + weight for each, weight in zip(carried, weights, strict=True)])
    log_e = np.logaddexp.reduce(wealth, axis=0)
    parts = []
    for look, each in zip(looks, carried, strict=True):
        lasting = np.ones(log_e.shape, dtype=bool)
        if levels.excluded_slices and np.any(log_e >= levels.fail):
            kept = look.comparison.without_best_slices(
                process, each, look.now, levels.excluded_slices
            )
            lasting = kept > LOG_LASTING
        parts.append((each, look, lasting))
    return _of_which(log_e, wealth.argmax(axis=0), measures, parts)


def _least_safe(measures: Sequence[Measure], looks: Sequence[Look]) -> Proof:
    wealth = np.stack([look.mirror.log_e for look in looks])
    lasting = np.ones(wealth.shape[1:], dtype=bool)
    parts = [(look.mirror, look, lasting) for look in looks]
    return _of_which(wealth.min(axis=0), wealth.argmin(axis=0), measures, parts)


def _of_which(
    log_e: Array,
    which: Integers,
    measures: Sequence[Measure],
    parts: Sequence[tuple[Carried, Look, Flags]],
) -> Proof:
    rows = []
    for measure, (carried, look, lasting) in zip(measures, parts, strict=True):
        canary, control = look.rates(carried)
        stake = np.searchsorted(look.stakes.starts, carried.start)
        dispersion = np.take_along_axis(look.dispersion, stake[..., None], axis=-1)[..., 0]
        beyond = canary - control > measure.margin
        rows.append((carried.start, canary, control, dispersion, lasting, beyond))
    start, canary, control, dispersion, lasting, beyond = (
        np.take_along_axis(np.stack(column), which[None], axis=0)[0]
        for column in zip(*rows, strict=True)
    )
    return Proof(log_e, which, start, canary, control, dispersion, lasting, beyond)


def _step_began(measures: Sequence[Measure], now: int) -> int:
    steps = measures[0].comparison.series.steps[:now]
    # A later interval may come from an instance that still serves the previous step.
    return int((steps == steps.max()).argmax())


def _are_within(measures: Sequence[Measure], start: Integers, now: int) -> Flags:
    """Flag the runs in which no estimate since `start` exceeds its margin."""
    within = []
    for each in measures:
        canary, control = each.comparison.rates(start, now)
        within.append(canary - control <= each.margin)
    result: Flags = np.logical_and.reduce(within)
    return result
