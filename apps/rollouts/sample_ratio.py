"""Did the canary get its configured share of the units? Something that loses, doubles or misroutes
units on one side makes every comparison worthless.

Counted are distinct units in each interval on each instance. A unit that comes back in the next
interval, or meets another instance, is no new draw, so that pooled counts vary more than
independent draws do. How much more shows in the clusters, which are fixed shares of the units: see
`spread_of`.
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
# Of one look.
P_MAX = 0.001
# Of all looks of a rollout together.
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
    """Did the canary get the share of traffic that was configured, as of each interval?

    With configured shares w_k and N_k exposures z² = (Σ n1_k − Σ N_k·w_k)² / Σ N_k·w_k(1−w_k) is
    chi-square with one degree of freedom. The check speaks up at p < 0.001 and a deviation of at
    least 5 % of the smaller side; traffic on a version whose weight was 0 is a leak at once. Both
    fail: something lost, doubled or misrouted units, and no comparison may be trusted.

    The p-value is that of one look at independent draws: give it each unit once. A unit that comes
    back in the next interval is no new draw, and pooling such intervals cries wolf.
    """
    seen = sum(i.canary_n + i.control_n for i in intervals)
    if seen == 0:
        return _no_data()
    leaked = sum(i.canary_n for i in intervals if i.canary_weight_bp == 0)
    leaked += sum(i.control_n for i in intervals if i.canary_weight_bp == SHARE_WHOLE_BP)
    if leaked:
        reason = f"{leaked} of {seen} exposures on a version whose weight was 0"
        return CheckResult(SAMPLE_RATIO, Verdict.FAIL, reason, {"leaked": leaked, "n": seen})
    split = [i for i in intervals if 0 < i.canary_weight_bp < SHARE_WHOLE_BP]
    if not split:
        return CheckResult(
            SAMPLE_RATIO, Verdict.PASS, f"all {seen} exposures on the one version", {"n": seen}
        )
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
    told = f"canary got {canary} of {total}, {expected:.0f} expected"
    if smaller < EXPECTED_MIN:
        record: dict[str, JSON] = {"observed": canary, "expected": expected, "n": total}
        return CheckResult(
            SAMPLE_RATIO, Verdict.INSUFFICIENT_SAMPLE, f"{told}: too few to tell", record
        )
    p_value = float(chdtrc(1, (canary - expected) ** 2 / variance))
    deviation = (canary - expected) / smaller
    off = p_value < P_MAX and abs(deviation) >= DEVIATION_MIN
    record = {
        "observed": canary,
        "expected": expected,
        "n": total,
        "p_value": p_value,
        "relative_deviation": deviation,
    }
    return CheckResult(
        SAMPLE_RATIO,
        Verdict.FAIL if off else Verdict.PASS,
        f"{told} ({deviation:+.1%}, p={p_value:.2g})",
        record,
    )


def spread_of(units: Array, anonymous: Array) -> Array:
    """How many times as much as independent draws the canary's pooled count varies, at least 1.

    `units` has shape `(…, CLUSTERS)`: each cluster's counts of units, of both arms, summed over
    intervals and instances. `anonymous` of shape `(…)` are requests without a unit, each a draw of
    its own. If unit u is counted v_u times, the canary's count has variance w(1−w)·Σ v_u². Clusters
    are random shares of the units, hence E Σ_c (T_c − mean T)² = (1 − 1/C)·Σ v_u² for the totals
    T_c of C clusters. That estimate has C − 1 = 31 degrees of freedom.
    """
    total = units.sum(axis=-1)
    around = ((units - units.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    squares = np.maximum(around / (1.0 - 1.0 / CLUSTERS), total)
    result: Array = (squares + anonymous) / np.maximum(total + anonymous, 1.0)
    return result


def log_evidence(canary: Array, control: Array, weight: float, spread: Array) -> Array:
    """ln of the evidence against the canary's share `weight`, after any number of looks.

    The sequential test on the counts divided by their spread, that is on as many independent draws
    as they are worth.
    """
    counts = np.stack([canary, control], axis=-1) / spread[..., None]
    return log_bayes_factors(counts, np.array([weight, 1.0 - weight]))


def judge_step(
    intervals: Sequence[Interval], step_index: int, *, weight_bp: int, steps: int
) -> CheckResult:
    """Judge one step's share from all of its intervals, at any look.

    `weight_bp` is the canary's share of the two arms that are counted, `steps` how many steps of
    the plan are judged so: they share α. Fails on traffic of a version whose weight is 0, and on a
    proven deviation of at least 5 % of the smaller side. Intervals from before clusters were
    counted leave the fullest one to be judged, as if it were the only look.
    """
    mine = _whole_intervals(intervals, step_index)
    if not 0 < weight_bp < SHARE_WHOLE_BP:
        canary_n = sum(i.canary.assigned for i in mine)
        control_n = sum(i.control.assigned for i in mine)
        return judge_sample_ratio([SplitInterval(canary_n, control_n, weight_bp)])
    clustered = [i for i in mine if i.canary.clusters or i.control.clusters]
    if clustered:
        counts = _counts(i.canary for i in clustered), _counts(i.control for i in clustered)
        return _judge_counts(*counts, weight_bp / SHARE_WHOLE_BP, math.log(steps / ALPHA))
    fullest = max(mine, key=_assigned, default=None)
    if fullest is None:
        return judge_sample_ratio([])
    row = SplitInterval(fullest.canary.assigned, fullest.control.assigned, weight_bp)
    return judge_sample_ratio([row])


def _whole_intervals(intervals: Sequence[Interval], step_index: int) -> list[Interval]:
    """Return the step's intervals but those in which the step before was still served.

    An instance counts a unit once in an interval for each version: of those who come back after
    the share changed, only those whom the change moved are counted again.
    """
    before = {i.started_at for i in intervals if i.step_index < step_index}
    return [i for i in intervals if i.step_index == step_index and i.started_at not in before]


def _assigned(interval: Interval) -> int:
    return interval.canary.assigned + interval.control.assigned


@dataclass(frozen=True)
class _Counts:
    """One arm: counts of units by cluster, and requests without a unit."""

    units: Array
    anonymous: float

    @property
    def total(self) -> float:
        return float(self.units.sum()) + self.anonymous


def _counts(arms: Iterable[Arm]) -> _Counts:
    """Of the arms that counted clusters."""
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
    spread = float(spread_of(canary.units + control.units, np.array(anonymous)))
    expected = n * weight
    smaller = min(expected, n - expected)
    deviation = (canary.total - expected) / smaller
    log_e = float(
        log_evidence(np.array(canary.total), np.array(control.total), weight, np.array(spread))
    )
    reason = (
        f"canary got {canary.total:,.0f} of {n:,.0f}, {expected:,.0f} expected ({deviation:+.1%}, "
        f"p={math.exp(-max(0.0, min(700.0, log_e))):.2g} at any look{_tell_spread(spread, n)})"
    )
    record: dict[str, JSON] = {
        "observed": round(canary.total),
        "expected": expected,
        "n": round(n),
        "relative_deviation": deviation,
        "spread": spread,
        "log_e": log_e,
        "log_e_needed": log_needed,
    }
    if smaller / spread < EXPECTED_MIN:
        told = f"{reason}: too few different units to tell"
        return CheckResult(SAMPLE_RATIO, Verdict.INSUFFICIENT_SAMPLE, told, record)
    is_off = log_e >= log_needed and abs(deviation) >= DEVIATION_MIN
    return CheckResult(SAMPLE_RATIO, Verdict.FAIL if is_off else Verdict.PASS, reason, record)


def _tell_spread(spread: float, n: float) -> str:
    if spread < 1.5:
        return ""
    return f"; units were counted again and again, so that they weigh as {n / spread:,.0f} draws"


def _no_data() -> CheckResult:
    reason = "no units were assigned"
    return CheckResult(SAMPLE_RATIO, Verdict.NO_DATA, reason, {"canary_n": 0, "control_n": 0})
