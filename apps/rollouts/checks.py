"""The checks that compare a canary with stable over the same seconds, as pure functions.

Only `fail` may roll back and only `pass` may let a step pass. Missing data leads to neither.
The evidence stays valid however often the reconciler looks at it. Each reason shows the numbers of
the segment that its evidence comes from, so that claim and numbers never contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import numpy as np

from apps.rollouts import eprocess
from apps.rollouts.check_kinds import ERROR_RATE, LATENCY, UNANSWERED
from apps.rollouts.check_outcomes import Levels, Measure, Proof, Ruling, rule
from apps.rollouts.comparison import Comparison, Series
from apps.rollouts.eprocess import BucketCounts
from apps.rollouts.instance_concentration import dominant_source
from apps.rollouts.verdicts import JSON, CheckResult, Verdict, format_odds, format_percent

EvidenceMode = Literal["any_regression", "beyond_margin"]

# Weights of the average of the latency e-values, fixed beforehand. A slow tail shows at p99 alone
# and in few requests, so that p99 has most of the stake; a delay of all requests shows at p50 so
# soon that a fifth suffices.
QUANTILES_PERMILLE = (500, 950, 990)
QUANTILE_WEIGHTS = {500: 0.2, 950: 0.2, 990: 0.6}
# From this dispersion on, a reason mentions that counts vary more than independent ones.
DISPERSION_SHOWN_MIN = 1.05
# Percentages are written with fewer decimal places than this.
DIGITS_MAX = 9
# A rate below this has at least two decimal places in per cent.
RARE_RATE = 0.001

SHARE_WHOLE_BP = 10_000
# Evidence must still hold without its worst seconds: one at 20:1, two at 100:1 to 500:1.
LOG_A_SECOND = 2.5
SLICES_A_SECOND = 2


@dataclass(frozen=True)
class CheckSettings:
    """How strict the checks of a rollout are. Raises ValueError for values out of range.

    `alpha` bounds the chance of rolling back a healthy canary over the whole rollout; it is split
    evenly over `guardrails` checks. `alpha_promote` bounds the chance of passing a canary that is
    worse by the margin. Margins are in basis points (100 is one percentage point): `margin_bp` of
    the error rate, the others of the requests slower than stable's frozen p50, p95 and p99; about
    10 % more latency exceeds each of them. `any_regression` rolls back on proof of any regression
    whose estimate exceeds the margin, `beyond_margin` only on proof that the margin itself is
    exceeded. `min_samples` canary exposures are needed to pass, none to fail.
    """

    margin_bp: int = 100
    p50_margin_bp: int = 750
    p95_margin_bp: int = 250
    p99_margin_bp: int = 100
    alpha: float = 0.01
    alpha_promote: float = 0.1
    guardrails: int = 1
    evidence_mode: EvidenceMode = "any_regression"
    min_samples: int = 100

    def __post_init__(self) -> None:
        for name in ("margin_bp", "p50_margin_bp", "p95_margin_bp", "p99_margin_bp"):
            if not 0 < getattr(self, name) < SHARE_WHOLE_BP:
                raise ValueError(f"{name} must be between 1 and 9999")
        for name in ("alpha", "alpha_promote"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be between 0 and 1")
        if self.guardrails < 1 or self.min_samples < 0:
            raise ValueError("guardrails must be at least 1 and min_samples at least 0")
        if self.evidence_mode not in ("any_regression", "beyond_margin"):
            raise ValueError(
                f"unknown evidence mode {self.evidence_mode!r}; "
                "expected one of any_regression, beyond_margin"
            )

    @property
    def log_fail(self) -> float:
        """ln(M/α): the evidence at which one of M guardrails rolls back."""
        return math.log(self.guardrails / self.alpha)

    def levels(self, slices: int = 0) -> Levels:
        """Return the levels for evidence that comes in `slices` per interval.

        Evidence must hold without its best slices: neither one lost second nor, at α = 1/100 and
        less, two of them may roll back. A second spans at most two slices, or the one slice of its
        interval. 0 slices: the duration of the counts is unknown, and no slice is excluded.
        """
        seconds = max(1, round(self.log_fail / LOG_A_SECOND))
        return Levels(
            fail=self.log_fail,
            promote=self.log_promote,
            strict=self.evidence_mode == "beyond_margin",
            samples_min=self.min_samples,
            excluded_slices=min(slices, SLICES_A_SECOND) * seconds,
        )

    def quantile_margin(self, permille: int) -> float:
        """The tolerated surplus of requests slower than this stable quantile, as a fraction."""
        margins = {500: self.p50_margin_bp, 950: self.p95_margin_bp, 990: self.p99_margin_bp}
        return margins[permille] / SHARE_WHOLE_BP

    @property
    def log_promote(self) -> float:
        return -math.log(self.alpha_promote)


@dataclass(frozen=True)
class Frame:
    """The context of the counts: when each interval began, and how they were counted.

    `has_slices`: intervals are divided into slices, so that evidence must hold without its best.
    """

    started_at: Sequence[datetime] = ()
    counted: str = ""
    has_slices: bool = False
    # Counts by data plane instance, for each interval from the given one on.
    instances: Callable[[int], Sequence[Mapping[str, BucketCounts]]] = lambda _: ()
    # The same by cluster of units, where clients decide the event: how long they wait.
    clusters: Callable[[int], Sequence[Mapping[str, BucketCounts]]] = lambda _: ()


def series_of(buckets: Sequence[BucketCounts], steps: Sequence[int] = ()) -> Series:
    """Return the series of whole intervals, all of one step unless `steps` says otherwise."""
    step = np.asarray(steps or [0] * len(buckets), dtype=np.int64)
    return Series(eprocess.counts_of(buckets), step)


def _series(counts: Series | Sequence[BucketCounts]) -> Series:
    return counts if isinstance(counts, Series) else series_of(counts)


def judge_error_rate(
    counts: Series | Sequence[BucketCounts], settings: CheckSettings, frame: Frame | None = None
) -> CheckResult:
    """Compare error rates; `counts` are intervals of the whole rollout, oldest first."""
    return _judge_rate(ERROR_RATE, "error rate", counts, settings, frame or Frame())


def judge_unanswered(
    counts: Series | Sequence[BucketCounts], settings: CheckSettings, frame: Frame | None = None
) -> CheckResult:
    """Compare the shares of assigned units without an answer.

    Clients that are impatient with both versions count on both sides and prove nothing.
    """
    return _judge_rate(UNANSWERED, "unanswered", counts, settings, frame or Frame())


def _judge_rate(
    check: str,
    label: str,
    counts: Series | Sequence[BucketCounts],
    settings: CheckSettings,
    frame: Frame,
) -> CheckResult:
    series = _series(counts)
    margin = settings.margin_bp / SHARE_WHOLE_BP
    measure = Measure(label, Comparison.of(series, margin=margin), margin)
    return _judge(check, [measure], settings, frame)


def judge_latency(
    p95: Series | Sequence[BucketCounts],
    p99: Series | Sequence[BucketCounts],
    settings: CheckSettings,
    *,
    p50: Series | Sequence[BucketCounts] | None = None,
    frame: Frame | None = None,
) -> CheckResult:
    """Compare latency: counts of requests slower than stable's quantiles, frozen beforehand.

    All have the same intervals in the same order; ValueError if their lengths differ. `p50` is None
    for a rollout whose reference was frozen without one.
    """
    quantiles = dict(zip(QUANTILES_PERMILLE, (p50, p95, p99), strict=True))
    series = {q: _series(each) for q, each in quantiles.items() if each is not None}
    if len({each.counts.canary_n.shape for each in series.values()}) != 1:
        raise ValueError("the quantiles must have the same number of intervals")
    measures = [latency_measure(permille, each, settings) for permille, each in series.items()]
    return _judge(LATENCY, measures, settings, frame or Frame())


def latency_measure(permille: int, series: Series, settings: CheckSettings) -> Measure:
    """Return the comparison of the requests slower than one quantile."""
    margin = settings.quantile_margin(permille)
    compared = Comparison.of(
        series, margin=margin, expected_rate=1.0 - permille / 1000, bets=eprocess.FREQUENT
    )
    return Measure(f"p{permille // 10}", compared, margin, QUANTILE_WEIGHTS[permille])


def _judge(
    check: str, measures: Sequence[Measure], settings: CheckSettings, frame: Frame
) -> CheckResult:
    now = measures[0].comparison.weights.shape[-1] - 1
    totals = _totals(measures[0].comparison.series)
    if not all(each.comparison.weights[..., -1] > 0.0 for each in measures):
        return _no_data(check, totals[0], totals[2])
    slices = measures[0].comparison.series.counts.canary_n.shape[-1]
    ruling = rule(measures, now, settings.levels(slices if frame.has_slices else 0))
    verdict, proof, conclusion = _decide(ruling, settings)
    if verdict is Verdict.FAIL:
        origin = _single_origin(frame, int(proof.start), measures[0].margin)
        if origin:
            verdict, conclusion = Verdict.INCONCLUSIVE, f"{conclusion}, but only {origin}"
    whole = (
        replace(proof, start=np.zeros((), dtype=np.int64))
        if verdict is Verdict.INSUFFICIENT_SAMPLE
        else proof
    )
    shown = _rates_of(measures, int(whole.start), now)
    n = _canary_n(measures[0].comparison.series, int(whole.start))
    counted = "requests" if check == LATENCY else "exposures"
    figures = f"{_describe_rates(check, measures, shown)}, after {n:,} {counted} of the canary"
    figures += _describe_start(whole, now, frame)
    dispersion = float(proof.dispersion)
    if dispersion > DISPERSION_SHOWN_MIN:
        conclusion += (
            f"; counts vary {dispersion:.2g} times as much as independent ones{frame.counted}"
        )
    evidence = _record(ruling, settings, measures, shown, whole, now)
    headline = f"{_headline(check, measures, shown)}, after {n:,} requests"
    return CheckResult(check, verdict, f"{figures}: {conclusion}", evidence, headline=headline)


def _single_origin(frame: Frame, start: int, margin: float) -> str:
    """Describe the one instance or cluster that causes all of the excess, or return nothing."""
    if instance := dominant_source(frame.instances(start), margin):
        return f"on instance {instance}"
    return "among one user or a few" if dominant_source(frame.clusters(start), margin) else ""


def _decide(ruling: Ruling, settings: CheckSettings) -> tuple[Verdict, Proof, str]:
    """Apply the rules of docs/statistics.md in order; return verdict, proof and conclusion."""
    margin, zero, mirror = ruling.margin, ruling.zero, ruling.mirror
    if ruling.is_worse:
        conclusion = f"proven worse by more than the margin (odds {_odds(margin)})"
        return Verdict.FAIL, margin, conclusion
    if ruling.is_regression_beyond:
        conclusion = f"proven worse (odds {_odds(zero)}) and the estimate exceeds the margin"
        return Verdict.FAIL, zero, conclusion
    needed = settings.log_fail
    regression = bool((zero.log_e >= needed) & zero.is_lasting & (zero.difference > 0.0))
    if ruling.is_safe:
        conclusion = f"proven not worse by the margin (odds {_odds(mirror)})"
        is_worse = regression and mirror.difference > 0.0
        return Verdict.PASS, mirror, conclusion + (", though a little worse" if is_worse else "")
    if regression:
        conclusion = (
            f"proven worse (odds {_odds(zero)}), but not proven worse by more than the margin"
        )
        return Verdict.INCONCLUSIVE, zero, conclusion
    return Verdict.INSUFFICIENT_SAMPLE, zero, _undecided(ruling, settings)


def _undecided(ruling: Ruling, settings: CheckSettings) -> str:
    harm = ruling.margin if ruling.margin.log_e > ruling.zero.log_e else ruling.zero
    if harm.log_e >= settings.log_fail and not harm.is_lasting:
        return f"evidence of harm (odds {_odds(harm)}) comes from too few seconds to prove anything"
    return (
        f"evidence of harm {_odds(harm)} ({format_odds(settings.log_fail)} needed), "
        f"of safety {_odds(ruling.mirror)} ({format_odds(settings.log_promote)} needed)"
    )


def _odds(proof: Proof) -> str:
    return format_odds(float(proof.log_e))


Rates = tuple[float, float]


def _rates_of(measures: Sequence[Measure], start: int, now: int) -> list[Rates]:
    both = [each.comparison.rates(np.array(start), now) for each in measures]
    return [(float(canary), float(control)) for canary, control in both]


def _describe_rates(check: str, measures: Sequence[Measure], shown: Sequence[Rates]) -> str:
    if check == LATENCY:
        parts = [
            f"{each.label}: {_describe_pair(*pair, each.margin)}"
            for each, pair in zip(measures, shown, strict=True)
        ]
        return f"answers slower than stable's {'; '.join(parts)}"
    return f"{measures[0].label} {_describe_pair(*shown[0], measures[0].margin)}"


def _headline(check: str, measures: Sequence[Measure], shown: Sequence[Rates]) -> str:
    """Return the figures of the measure that is furthest beyond its margin."""
    excess = [
        canary - control - each.margin
        for each, (canary, control) in zip(measures, shown, strict=True)
    ]
    worst = excess.index(max(excess))
    canary, control, _ = _percents(*shown[worst], measures[worst].margin)
    if check == LATENCY:
        return f"{canary} slower than stable's {measures[worst].label} ({control} on stable)"
    event = "errors" if check == ERROR_RATE else measures[worst].label
    return f"{canary} {event} against {control} on stable"


def _describe_pair(canary: float, control: float, margin: float) -> str:
    ours, theirs, allowed = _percents(canary, control, margin)
    return f"{ours} on the canary, {theirs} on stable, margin {allowed}"


def _describe_start(proof: Proof, now: int, frame: Frame) -> str:
    """Describe from when the numbers count, unless they cover the whole rollout."""
    start = int(proof.start)
    if start == 0:
        return ""
    at = f" {frame.started_at[start]:%H:%M:%S}" if frame.started_at else ""
    return f" since{at or f' interval {start + 1}'} ({now - start} intervals)"


def _canary_n(series: Series, start: int) -> int:
    return int(series.counts.canary_n[start:].sum())


def _totals(series: Series) -> tuple[int, int, int, int]:
    counts = series.counts
    columns = (counts.canary_n, counts.canary_events, counts.control_n, counts.control_events)
    canary_n, canary_events, control_n, control_events = (int(each.sum()) for each in columns)
    return canary_n, canary_events, control_n, control_events


def _record(
    ruling: Ruling,
    settings: CheckSettings,
    measures: Sequence[Measure],
    shown: Sequence[Rates],
    whole: Proof,
    now: int,
) -> dict[str, JSON]:
    """Return the stored evidence; for latency each quantile has its numbers under its label."""
    rows: list[dict[str, JSON]] = []
    for each, (canary, control) in zip(measures, shown, strict=True):
        canary_n, canary_events, control_n, control_events = _totals(each.comparison.series)
        rows.append(
            {
                "canary_n": canary_n,
                "canary_events": canary_events,
                "control_n": control_n,
                "control_events": control_events,
                "canary_rate": canary,
                "control_rate": control,
                "difference": canary - control,
                "margin_bp": round(each.margin * SHARE_WHOLE_BP),
                "log_e_needed": settings.log_fail,
            }
        )
    record: dict[str, JSON] = {
        "log_e_margin": float(ruling.margin.log_e),
        "log_e_zero": float(ruling.zero.log_e),
        "log_e_zero_beyond": float(ruling.zero.log_e) if ruling.zero.is_beyond else 0.0,
        "log_e_mirror": float(ruling.mirror.log_e),
        "log_e_needed": settings.log_fail,
        "log_e_promote": settings.log_promote,
        "evidence_mode": settings.evidence_mode,
        "first_interval": int(whole.start),
        "intervals": now - int(whole.start),
        "speaks": measures[int(whole.which)].label,
        "dispersion": float(whole.dispersion),
        "is_lasting": bool(ruling.zero.is_lasting & ruling.margin.is_lasting),
    }
    if len(rows) == 1:
        return {**rows[0], **record}
    return {**{each.label: row for each, row in zip(measures, rows, strict=True)}, **record}


def _no_data(check: str, canary_n: int, control_n: int) -> CheckResult:
    sides = [name for name, n in (("canary", canary_n), ("stable", control_n)) if n == 0]
    missing = " and ".join(sides) or "canary and stable at the same time"
    return CheckResult(
        check,
        Verdict.NO_DATA,
        f"no exposures of {missing} ({canary_n:,} on the canary, {control_n:,} on stable)",
        {"canary_n": canary_n, "control_n": control_n},
    )


def _percents(canary: float, control: float, margin: float) -> tuple[str, str, str]:
    """Format rates with enough digits to show on which side of the margin they lie."""
    for digits in range(1, DIGITS_MAX):
        shown = [round(100.0 * rate, digits) for rate in (canary, control, margin)]
        difference = round(shown[0] - shown[1], digits)
        is_alike = (difference > shown[2]) == (canary - control > margin)
        if is_alike and (difference > 0.0) == (canary > control):
            break
    ours, theirs = (
        format_percent(rate, max(digits, 2) if rate < RARE_RATE else digits)
        for rate in (canary, control)
    )
    return ours, theirs, format_percent(margin, digits)
