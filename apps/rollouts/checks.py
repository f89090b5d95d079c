"""The checks that judge a canary against stable over the same seconds, as pure functions.

Only `fail` may roll back and only `pass` may let a step pass. Missing data is never either of them.
The evidence in here may be looked at as often as the reconciler likes. Each sentence shows the
numbers of the segment that its evidence comes from, so that no claim contradicts those beside it.
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
from apps.rollouts.instance_concentration import rests_on
from apps.rollouts.verdicts import JSON, CheckResult, Verdict, odds

EvidenceMode = Literal["any_regression", "beyond_margin"]

# Latency's e-values are averaged with these weights, fixed beforehand. A slow tail shows at p99
# alone and there in few requests, so that p99 has most of the stake; what slows all requests shows
# at p50 so soon that a fifth is plenty.
QUANTILES_PERMILLE = (500, 950, 990)
QUANTILE_WEIGHTS = {500: 0.2, 950: 0.2, 990: 0.6}
# From here on it is worth saying that the counts vary more than independent ones.
DISPERSION_TOLD = 1.05
# Rates are written with fewer digits of a per cent.
DIGITS_MAX = 9
# Below it a rate has two digits at least.
RARE_RATE = 0.001

SHARE_WHOLE_BP = 10_000
# How many lost seconds a rollback must outlast: one at 20:1, two at 100:1 to 500:1.
LOG_A_SECOND = 2.5
SLICES_A_SECOND = 2


@dataclass(frozen=True)
class CheckSettings:
    """How strict the checks of a rollout are. Raises ValueError for values that make no sense.

    `alpha` bounds the chance of rolling back a healthy canary over the whole rollout; it is split
    evenly over `guardrails` checks. `alpha_promote` bounds the chance of passing a canary that is
    worse by the margin. Margins are in basis points (100 is one percentage point): `margin_bp` of
    the error rate, the others of the requests slower than stable's frozen p50, p95 and p99, each
    of which some 10 % more latency exceeds. `any_regression` rolls back on proof of any regression
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
                raise ValueError(f"{name} must lie between 1 and 9999")
        for name in ("alpha", "alpha_promote"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie between 0 and 1")
        if self.guardrails < 1 or self.min_samples < 0:
            raise ValueError("guardrails must be at least 1 and min_samples at least 0")
        if self.evidence_mode not in ("any_regression", "beyond_margin"):
            raise ValueError(f"unknown evidence mode {self.evidence_mode!r}")

    @property
    def log_fail(self) -> float:
        """ln(M/α): the evidence at which one of M guardrails rolls back."""
        return math.log(self.guardrails / self.alpha)

    def levels(self, slices: int = 0) -> Levels:
        """Return what a ruling needs of evidence that comes in `slices` of an interval.

        It must outlast its best ones: neither one lost second nor, at 1/100 and less, two of them
        may roll back. A second is in two slices at most, or in one interval that has but one. With
        0 nobody knows how long what was counted lasted.
        """
        seconds = max(1, round(self.log_fail / LOG_A_SECOND))
        return Levels(
            fail=self.log_fail,
            promote=self.log_promote,
            strict=self.evidence_mode == "beyond_margin",
            samples_min=self.min_samples,
            loud=min(slices, SLICES_A_SECOND) * seconds,
        )

    def quantile_margin(self, permille: int) -> float:
        """The tolerated surplus of requests slower than one of stable's quantiles, a fraction."""
        margins = {500: self.p50_margin_bp, 950: self.p95_margin_bp, 990: self.p99_margin_bp}
        return margins[permille] / SHARE_WHOLE_BP

    @property
    def log_promote(self) -> float:
        return -math.log(self.alpha_promote)


@dataclass(frozen=True)
class Frame:
    """What surrounds the numbers: when each interval began, and what was counted.

    `loud` says whether seconds can be told apart: then evidence must outlast its best ones.
    """

    started_at: Sequence[datetime] = ()
    counted: str = ""
    loud: bool = False
    # What each instance of the data plane counted, in each interval from the one that is named.
    instances: Callable[[int], Sequence[Mapping[str, BucketCounts]]] = lambda _: ()
    # The same by cluster of units, where what is counted is up to clients: how long they wait.
    clusters: Callable[[int], Sequence[Mapping[str, BucketCounts]]] = lambda _: ()


def series_of(buckets: Sequence[BucketCounts], steps: Sequence[int] = ()) -> Series:
    """Return the series of whole intervals, all of one step unless `steps` says otherwise."""
    step = np.asarray(steps or [0] * len(buckets), dtype=np.int64)
    return Series(eprocess.counts_of(buckets), step)


def _series(given: Series | Sequence[BucketCounts]) -> Series:
    return given if isinstance(given, Series) else series_of(given)


def judge_error_rate(
    given: Series | Sequence[BucketCounts], settings: CheckSettings, frame: Frame | None = None
) -> CheckResult:
    """Error rate of canary against stable; intervals of the whole rollout, oldest first."""
    return _judge_rate(ERROR_RATE, "error rate", given, settings, frame or Frame())


def judge_unanswered(
    given: Series | Sequence[BucketCounts], settings: CheckSettings, frame: Frame | None = None
) -> CheckResult:
    """The share of assigned units without an answer, canary against stable.

    Clients that are as impatient with both versions are on both sides and prove nothing.
    """
    return _judge_rate(UNANSWERED, "unanswered", given, settings, frame or Frame())


def _judge_rate(
    check: str,
    label: str,
    given: Series | Sequence[BucketCounts],
    settings: CheckSettings,
    frame: Frame,
) -> CheckResult:
    series = _series(given)
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
    """Latency, as counts of requests slower than stable's quantiles, frozen before the rollout.

    All hold the same intervals in the same order; ValueError if their lengths differ. `p50` is None
    for a rollout whose reference was frozen without one.
    """
    given = dict(zip(QUANTILES_PERMILLE, (p50, p95, p99), strict=True))
    series = {q: _series(each) for q, each in given.items() if each is not None}
    if len({each.counts.canary_n.shape for each in series.values()}) != 1:
        raise ValueError("the quantiles' buckets must be of the same intervals")
    measures = [latency_measure(permille, each, settings) for permille, each in series.items()]
    return _judge(LATENCY, measures, settings, frame or Frame())


def latency_measure(permille: int, series: Series, settings: CheckSettings) -> Measure:
    """One quantile's exceedances."""
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
    ruling = rule(measures, now, settings.levels(slices if frame.loud else 0))
    verdict, proof, why = _decide(ruling, settings)
    if verdict is Verdict.FAIL:
        alone = _alone(frame, int(proof.start), measures[0].margin)
        if alone:
            verdict, why = Verdict.INCONCLUSIVE, f"{why}, but by {alone} alone"
    whole = (
        replace(proof, start=np.zeros((), dtype=np.int64))
        if verdict is Verdict.INSUFFICIENT_SAMPLE
        else proof
    )
    shown = _rates_of(measures, int(whole.start), now)
    words = f"{_tell_rates(check, measures, shown)}{_since(whole, now, frame)}"
    words = f"{words}, n={_canary_n(measures[0].comparison.series, int(whole.start))}"
    varied = float(proof.dispersion)
    if varied > DISPERSION_TOLD:
        why += f"; counts vary {varied:.2g} times as much as independent ones{frame.counted}"
    evidence = _record(ruling, settings, measures, shown, whole, now)
    return CheckResult(check, verdict, f"{words}: {why}", evidence)


def _alone(frame: Frame, start: int, margin: float) -> str:
    """Return in words who brings all that is beyond the margin, if it is one of several."""
    if instance := rests_on(frame.instances(start), margin):
        return f"instance {instance}"
    return "one user, or a few," if rests_on(frame.clusters(start), margin) else ""


def _decide(ruling: Ruling, settings: CheckSettings) -> tuple[Verdict, Proof, str]:
    """The four outcomes of STATISTICS in their order, and whose numbers carry the sentence."""
    margin, zero, mirror = ruling.margin, ruling.zero, ruling.mirror
    if ruling.is_worse:
        why = f"proven worse by more than the margin ({odds(float(margin.log_e))})"
        return Verdict.FAIL, margin, why
    if ruling.is_regression_beyond:
        why = f"proven worse ({odds(float(zero.log_e))}) and the estimate exceeds the margin"
        return Verdict.FAIL, zero, why
    needed = settings.log_fail
    regression = bool((zero.log_e >= needed) & zero.is_lasting & (zero.difference > 0.0))
    if ruling.is_safe:
        why = f"proven not worse by the margin ({odds(float(mirror.log_e))})"
        little = regression and mirror.difference > 0.0
        return Verdict.PASS, mirror, why + (", though a little worse" if little else "")
    if regression:
        strength = odds(float(zero.log_e))
        why = f"proven worse ({strength}), but not proven worse by more than the margin"
        return Verdict.INCONCLUSIVE, zero, why
    return Verdict.INSUFFICIENT_SAMPLE, zero, _undecided(ruling, settings)


def _undecided(ruling: Ruling, settings: CheckSettings) -> str:
    harm = ruling.margin if ruling.margin.log_e > ruling.zero.log_e else ruling.zero
    if harm.log_e >= settings.log_fail and not harm.is_lasting:
        strength = odds(float(harm.log_e))
        return f"evidence of harm ({strength}) comes from too few seconds to prove anything"
    return (
        f"evidence of harm {odds(float(harm.log_e))} of {odds(settings.log_fail)} needed, "
        f"of safety {odds(float(ruling.mirror.log_e))} of {odds(settings.log_promote)}"
    )


Rates = tuple[float, float]


def _rates_of(measures: Sequence[Measure], start: int, now: int) -> list[Rates]:
    both = [each.comparison.rates(np.array(start), now) for each in measures]
    return [(float(canary), float(control)) for canary, control in both]


def _tell_rates(check: str, measures: Sequence[Measure], shown: Sequence[Rates]) -> str:
    if check == LATENCY:
        told = [
            (each.label, *_percents(*pair, each.margin))
            for each, pair in zip(measures, shown, strict=True)
        ]
        parts = [
            f"{label}: {canary} vs {control}, margin {margin}"
            for label, canary, control, margin in told
        ]
        return f"slower than stable's {'; '.join(parts)}"
    canary, control, margin = _percents(*shown[0], measures[0].margin)
    return f"{measures[0].label} {canary} vs stable {control}, margin {margin}"


def _since(proof: Proof, now: int, frame: Frame) -> str:
    """Where the numbers begin, unless they are those of the whole rollout."""
    start = int(proof.start)
    if start == 0:
        return ""
    at = f" {frame.started_at[start]:%H:%M:%S}" if frame.started_at else ""
    return f", since{at or f' interval {start + 1}'} ({now - start} intervals)"


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
    """What stands behind the sentence; for latency each quantile has its numbers by its name."""
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
    """Return what is said where canary and stable were not seen over the same seconds."""
    sides = [name for name, n in (("canary", canary_n), ("stable", control_n)) if n == 0]
    who = " and ".join(sides) or "canary and stable at the same time"
    return CheckResult(
        check,
        Verdict.NO_DATA,
        f"no exposures of {who} (canary n={canary_n}, stable n={control_n})",
        {"canary_n": canary_n, "control_n": control_n},
    )


def _percents(canary: float, control: float, margin: float) -> tuple[str, str, str]:
    """Write rates with as many digits as it takes to show on which side of the margin they lie."""
    for digits in range(1, DIGITS_MAX):
        shown = [round(100.0 * rate, digits) for rate in (canary, control, margin)]
        difference = round(shown[0] - shown[1], digits)
        is_alike = (difference > shown[2]) == (canary - control > margin)
        if is_alike and (difference > 0.0) == (canary > control):
            break
    canary_told, control_told = (
        f"{rate:.{max(digits, 2) if rate < RARE_RATE else digits}%}" for rate in (canary, control)
    )
    return canary_told, control_told, f"{margin:.{digits}%}"
