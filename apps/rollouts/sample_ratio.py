"""Tests whether the canary got its configured share of the units (sample ratio mismatch).

Losing, doubling or misrouting units on one side makes every comparison worthless. The counts are
distinct units in each interval on each instance. A unit that returns in the next interval, or
reaches another instance, is not a new draw, so that pooled counts vary more than independent draws.
The clusters, which are fixed shares of the units, show how much more: see `overdispersion_of`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

from apps.lib.multinomial import log_bayes_factors
from apps.rollouts.check_kinds import SAMPLE_RATIO
from apps.rollouts.evidence import COLUMNS, Arm, Interval
from apps.rollouts.verdicts import JSON, CheckResult, Verdict
from contract.messages import CLUSTERS

Array = NDArray[np.float64]

SHARE_WHOLE_BP = 10_000
# The level of a single look.
P_MAX = 0.001
# The level of all looks of a rollout together.
ALPHA = 0.002
DEVIATION_MIN = 0.05
EXPECTED_MIN = 5.0


@dataclass(frozen=True)
class SplitInterval:
    """Exposures of both versions while the canary's configured weight was `canary_weight_bp`."""

    canary_n: int
    control_n: int
    canary_weight_bp: int


def judge_sample_ratio(intervals: Sequence[SplitInterval]) -> CheckResult:
    """Test the canary's share of traffic against the configured share of each interval.

    With configured shares w_k and N_k exposures z² = (Σ n1_k − Σ N_k·w_k)² / Σ N_k·w_k(1−w_k) is
    chi-square with one degree of freedom. The check fails at p < 0.001 and a deviation of at
    least 5 % of the smaller side, and on any traffic of a version with weight 0 (a leak). In both
    cases units were lost, doubled or misrouted, and no comparison is valid.

    The p-value is for one look at independent draws, so each unit must count once. A unit that
    returns in the next interval is not a new draw: pooling such intervals causes false alarms.
    """
    total = sum(i.canary_n + i.control_n for i in intervals)
    if total == 0:
        return _no_data()
    leaked = sum(i.canary_n for i in intervals if i.canary_weight_bp == 0)
    leaked += sum(i.control_n for i in intervals if i.canary_weight_bp == SHARE_WHOLE_BP)
    if leaked:
        reason = f"{leaked:,} of {total:,} exposures went to a version with weight 0"
        return CheckResult(SAMPLE_RATIO, Verdict.FAIL, reason, {"leaked": leaked, "n": total})
    split = [i for i in intervals if 0 < i.canary_weight_bp < SHARE_WHOLE_BP]
    if not split:
        reason = f"all {total:,} exposures went to the one version with traffic"
        return CheckResult(SAMPLE_RATIO, Verdict.PASS, reason, {"n": total})
    return _judge_split(split)


def _judge_split(split: Sequence[SplitInterval]) -> CheckResult:
    canary = sum(i.canary_n for i in split)
    total = sum(i.canary_n + i.control_n for i in split)
    expected, variance = 0.0, 0.0
    for i in split:
        n, weight = i.canary_n + i.control_n, i.canary_weight_bp / SHARE_WHOLE_BP
        expected += n * weight
        variance += n * weight * (1.0 - weight)
    smaller = min(expected, total - expected)
    counts = f"the canary got {canary:,} of {total:,} exposures, {expected:,.0f} expected"
    if smaller < EXPECTED_MIN:
        record: dict[str, JSON] = {"observed": canary, "expected": expected, "n": total}
        return CheckResult(
            SAMPLE_RATIO, Verdict.INSUFFICIENT_SAMPLE, f"{counts}: too few for a decision", record
        )
    p_value = float(chdtrc(1, (canary - expected) ** 2 / variance))
    deviation = (canary - expected) / smaller
    is_off = p_value < P_MAX and abs(deviation) >= DEVIATION_MIN
    record = {
        "observed": canary,
        "expected": expected,
        "n": total,
        "p_value": p_value,
        "relative_deviation": deviation,
    }
    return CheckResult(
        SAMPLE_RATIO,
        Verdict.FAIL if is_off else Verdict.PASS,
        f"{counts} ({_signed(deviation)}, p={p_value:.2g})",
        record,
    )


def overdispersion_of(units: Array, anonymous: Array) -> Array:
    """Return the variance of the canary's pooled count over that of independent draws, at least 1.

    `units` has shape `(…, CLUSTERS)`: each cluster's counts of units, of both arms, summed over
    intervals and instances. `anonymous` of shape `(…)` are requests without a unit, each an
    independent draw. If unit u is counted v_u times, the canary's count has variance
    w(1−w)·Σ v_u². Clusters are random shares of the units, hence
    E Σ_c (T_c − mean T)² = (1 − 1/C)·Σ v_u² for the totals T_c of C clusters. That estimate has
    C − 1 = 31 degrees of freedom.
    """
    total = units.sum(axis=-1)
    around = ((units - units.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    squares = np.maximum(around / (1.0 - 1.0 / CLUSTERS), total)
    result: Array = (squares + anonymous) / np.maximum(total + anonymous, 1.0)
    return result


def log_evidence(canary: Array, control: Array, weight: float, dispersion: Array) -> Array:
    """Return ln of the evidence against the canary's share `weight`, valid at every look.

    It is the sequential test on the counts divided by `dispersion`, the equivalent number of
    independent draws.
    """
    counts = np.stack([canary, control], axis=-1) / dispersion[..., None]
    return log_bayes_factors(counts, np.array([weight, 1.0 - weight]))


def judge_step(
    intervals: Sequence[Interval], step_index: int, *, weight_bp: int, steps: int
) -> CheckResult:
    """Judge one step's share from all of its intervals; valid at every look.

    `weight_bp` is the canary's share of the two counted arms, `steps` the number of the plan's
    steps that share α. Fails on traffic of a version with weight 0, and on a proven deviation of at
    least 5 % of the smaller side. Of older intervals without clusters only the one with the most
    units is judged, as a single look.
    """
    whole = _whole_intervals(intervals, step_index)
    if not 0 < weight_bp < SHARE_WHOLE_BP:
        canary_n = sum(i.canary.assigned for i in whole)
        control_n = sum(i.control.assigned for i in whole)
        return judge_sample_ratio([SplitInterval(canary_n, control_n, weight_bp)])
    clustered = [i for i in whole if i.canary.clusters or i.control.clusters]
    if clustered:
        counts = _counts(i.canary for i in clustered), _counts(i.control for i in clustered)
        return _judge_counts(*counts, weight_bp / SHARE_WHOLE_BP, math.log(steps / ALPHA))
    fullest = max(whole, key=_assigned, default=None)
    if fullest is None:
        return judge_sample_ratio([])
    row = SplitInterval(fullest.canary.assigned, fullest.control.assigned, weight_bp)
    return judge_sample_ratio([row])


def _whole_intervals(intervals: Sequence[Interval], step_index: int) -> list[Interval]:
    """Return the step's intervals without those in which the previous step was still served.

    An instance counts a unit once in an interval for each version: of the units that return after
    the share changed, only those that the change moved count again.
    """
    before = {i.started_at for i in intervals if i.step_index < step_index}
    return [i for i in intervals if i.step_index == step_index and i.started_at not in before]


def _assigned(interval: Interval) -> int:
    return interval.canary.assigned + interval.control.assigned


@dataclass(frozen=True)
class _Counts:
    """One arm's counts of units by cluster, and of requests without a unit."""

    units: Array
    anonymous: float

    @property
    def total(self) -> float:
        return float(self.units.sum()) + self.anonymous


def _counts(arms: Iterable[Arm]) -> _Counts:
    """Add up the arms with clusters."""
    table = np.zeros((CLUSTERS, len(COLUMNS)))
    for arm in arms:
        if arm.clusters:
            table += arm.grouped.counts
    units, assigned = table[:, COLUMNS.index("units")], table[:, COLUMNS.index("assigned")]
    return _Counts(units, max(0.0, float(assigned.sum() - units.sum())))


def _judge_counts(
    canary: _Counts, control: _Counts, weight: float, log_needed: float
) -> CheckResult:
    n = canary.total + control.total
    if n == 0:
        return _no_data()
    anonymous = canary.anonymous + control.anonymous
    dispersion = float(overdispersion_of(canary.units + control.units, np.array(anonymous)))
    expected = n * weight
    smaller = min(expected, n - expected)
    deviation = (canary.total - expected) / smaller
    log_e = float(
        log_evidence(np.array(canary.total), np.array(control.total), weight, np.array(dispersion))
    )
    reason = (
        f"the canary got {canary.total:,.0f} of {n:,.0f} units, {expected:,.0f} expected "
        f"({_signed(deviation)}, p={math.exp(-max(0.0, min(700.0, log_e))):.2g} at any look"
        f"{_describe_dispersion(dispersion, n)})"
    )
    record: dict[str, JSON] = {
        "observed": round(canary.total),
        "expected": expected,
        "n": round(n),
        "relative_deviation": deviation,
        "spread": dispersion,
        "log_e": log_e,
        "log_e_needed": log_needed,
    }
    if smaller / dispersion < EXPECTED_MIN:
        reason = f"{reason}: too few different units for a decision"
        return CheckResult(SAMPLE_RATIO, Verdict.INSUFFICIENT_SAMPLE, reason, record)
    is_off = log_e >= log_needed and abs(deviation) >= DEVIATION_MIN
    return CheckResult(SAMPLE_RATIO, Verdict.FAIL if is_off else Verdict.PASS, reason, record)


def _signed(fraction: float) -> str:
    return f"{100.0 * fraction:+.1f} %"


def _describe_dispersion(dispersion: float, n: float) -> str:
    if dispersion < 1.5:
        return ""
    return f"; units count repeatedly, equivalent to {n / dispersion:,.0f} independent draws"


def _no_data() -> CheckResult:
    reason = "no units were assigned"
    return CheckResult(SAMPLE_RATIO, Verdict.NO_DATA, reason, {"canary_n": 0, "control_n": 0})
