"""The checks that judge a canary against stable over the same seconds, as pure functions.

Only `fail` may roll back and only `pass` may let a step pass. Missing data is never either of them.
The e-process evidence in here may be looked at as often as the reconciler likes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import chdtrc

from apps.rollouts import eprocess
from apps.rollouts.check_kinds import ERROR_RATE, LATENCY, SAMPLE_RATIO
from apps.rollouts.eprocess import BucketCounts, Evidence
from apps.rollouts.verdicts import JSON, CheckResult, Verdict

EvidenceMode = Literal["any_regression", "beyond_margin"]

SAMPLE_RATIO_P_MAX = 0.001
SAMPLE_RATIO_DEVIATION_MIN = 0.05
SAMPLE_RATIO_EXPECTED_MIN = 5.0
SHARE_WHOLE_BP = 10_000


@dataclass(frozen=True)
class CheckSettings:
    """How strict the checks of a rollout are. Raises ValueError for values that make no sense.

    `alpha` bounds the chance of rolling back a healthy canary over the whole rollout; it is split
    evenly over `guardrails` checks. `alpha_promote` bounds the chance of passing a canary that is
    worse by the margin. Margins are in basis points (100 is one percentage point): `margin_bp` of
    the error rate, `p95_margin_bp` and `p99_margin_bp` of the requests slower than stable's frozen
    p95 and p99. `any_regression` rolls back on proof of any regression whose estimate exceeds the
    margin, `beyond_margin` only on proof that the margin itself is exceeded. `min_samples` canary
    exposures are needed to pass, none to fail.
    """

    margin_bp: int = 100
    p95_margin_bp: int = 250
    p99_margin_bp: int = 100
    alpha: float = 0.01
    alpha_promote: float = 0.1
    guardrails: int = 1
    evidence_mode: EvidenceMode = "any_regression"
    min_samples: int = 100

    def __post_init__(self) -> None:
        for name in ("margin_bp", "p95_margin_bp", "p99_margin_bp"):
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

    @property
    def log_promote(self) -> float:
        return -math.log(self.alpha_promote)


@dataclass(frozen=True)
class SplitInterval:
    """Exposures of both versions while the canary's configured weight was `canary_weight_bp`."""

    canary_n: int
    control_n: int
    canary_weight_bp: int


def judge_error_rate(buckets: Sequence[BucketCounts], settings: CheckSettings) -> CheckResult:
    """Error rate of canary against stable; `buckets` of the whole rollout, oldest first."""
    found = eprocess.evidence(buckets, margin=settings.margin_bp / SHARE_WHOLE_BP)
    if found.canary_rate is None or found.control_rate is None:
        return _no_data(ERROR_RATE, found.canary_n, found.control_n)
    told = (
        f"error rate {_percent(found.canary_rate)} vs stable {_percent(found.control_rate)}, "
        f"margin {_percent(settings.margin_bp / SHARE_WHOLE_BP)}, n={found.canary_n}"
    )
    record = _record(found, settings, margin_bp=settings.margin_bp)
    verdict, why = _decide(found, settings)
    return CheckResult(ERROR_RATE, verdict, f"{told}: {why}", record)


def judge_latency(
    p95_buckets: Sequence[BucketCounts],
    p99_buckets: Sequence[BucketCounts],
    settings: CheckSettings,
) -> CheckResult:
    """Latency, as counts of requests slower than stable's p95 and p99, frozen before the rollout.

    Both sequences hold the same intervals in the same order; ValueError if their lengths differ.
    The two e-values of each null are averaged, which is valid under any dependence between them
    (Vovk and Wang 2021). Proof of safety needs both mirror processes, hence the smaller one: an
    average would let a safe p95 vouch for an unsafe p99.
    """
    if len(p95_buckets) != len(p99_buckets):
        raise ValueError("p95 and p99 buckets must be of the same intervals")
    margins = (settings.p95_margin_bp / SHARE_WHOLE_BP, settings.p99_margin_bp / SHARE_WHOLE_BP)
    paths95 = eprocess.follow(
        eprocess.counts_of(p95_buckets), margin=margins[0], expected_rate=0.05
    )
    paths99 = eprocess.follow(
        eprocess.counts_of(p99_buckets), margin=margins[1], expected_rate=0.01
    )
    beyond95, beyond99 = paths95.exceeds(margins[0]), paths99.exceeds(margins[1])
    found95 = eprocess.summarise(p95_buckets, paths95, beyond=beyond95)
    found99 = eprocess.summarise(p99_buckets, paths99, beyond=beyond99)
    if found95.difference is None or found99.difference is None:
        return _no_data(LATENCY, found95.canary_n, found95.control_n)
    both = eprocess.summarise(p95_buckets, _average(paths95, paths99), beyond=beyond95 | beyond99)
    told = (
        f"slower than stable's p95: {_percent(found95.canary_rate)} vs "
        f"{_percent(found95.control_rate)}, margin {_percent(margins[0])}; "
        f"than its p99: {_percent(found99.canary_rate)} vs {_percent(found99.control_rate)}, "
        f"margin {_percent(margins[1])}; n={found95.canary_n}"
    )
    verdict, why = _decide(both, settings)
    record: dict[str, JSON] = {
        "p95": _record(found95, settings, margin_bp=settings.p95_margin_bp),
        "p99": _record(found99, settings, margin_bp=settings.p99_margin_bp),
        "log_e_margin": both.log_margin,
        "log_e_zero": both.log_zero,
        "log_e_zero_beyond": both.log_zero_beyond,
        "log_e_mirror": both.log_mirror,
    }
    return CheckResult(LATENCY, verdict, f"{told}: {why}", record)


def judge_sample_ratio(intervals: Sequence[SplitInterval]) -> CheckResult:
    """Did the canary get the share of traffic that was configured, as of each interval?

    With configured shares w_k and N_k exposures z² = (Σ n1_k − Σ N_k·w_k)² / Σ N_k·w_k(1−w_k) is
    chi-square with one degree of freedom. The check speaks up at p < 0.001 and a deviation of at
    least 5 % of the smaller side; traffic on a version whose weight was 0 is a leak at once.
    """
    seen = sum(i.canary_n + i.control_n for i in intervals)
    if seen == 0:
        return _no_data(SAMPLE_RATIO, 0, 0)
    leaked = sum(i.canary_n for i in intervals if i.canary_weight_bp == 0)
    leaked += sum(i.control_n for i in intervals if i.canary_weight_bp == SHARE_WHOLE_BP)
    if leaked:
        reason = f"{leaked} of {seen} exposures on a version whose weight was 0"
        return CheckResult(
            SAMPLE_RATIO, Verdict.INCONCLUSIVE, reason, {"leaked": leaked, "n": seen}
        )
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
    if smaller < SAMPLE_RATIO_EXPECTED_MIN:
        record: dict[str, JSON] = {"observed": canary, "expected": expected, "n": total}
        return CheckResult(
            SAMPLE_RATIO, Verdict.INSUFFICIENT_SAMPLE, f"{told}: too few to tell", record
        )
    p_value = float(chdtrc(1, (canary - expected) ** 2 / variance))
    deviation = (canary - expected) / smaller
    off = p_value < SAMPLE_RATIO_P_MAX and abs(deviation) >= SAMPLE_RATIO_DEVIATION_MIN
    record = {
        "observed": canary,
        "expected": expected,
        "n": total,
        "p_value": p_value,
        "relative_deviation": deviation,
    }
    return CheckResult(
        SAMPLE_RATIO,
        Verdict.INCONCLUSIVE if off else Verdict.PASS,
        f"{told} ({deviation:+.1%}, p={p_value:.2g})",
        record,
    )


def _decide(found: Evidence, settings: CheckSettings) -> tuple[Verdict, str]:
    """The four outcomes of STATISTICS in their order: roll back, promote, pause, hold."""
    threshold = settings.log_fail
    if found.log_margin >= threshold:
        return Verdict.FAIL, f"proven worse by more than the margin ({_odds(found.log_margin)})"
    if settings.evidence_mode == "any_regression" and found.log_zero_beyond >= threshold:
        return Verdict.FAIL, (
            f"proven worse ({_odds(found.log_zero_beyond)}) and the estimate exceeded the margin"
        )
    regression = found.log_zero >= threshold
    if found.log_mirror >= settings.log_promote and found.canary_n >= settings.min_samples:
        why = f"proven not worse by the margin ({_odds(found.log_mirror)})"
        return Verdict.PASS, why + (", though a little worse" if regression else "")
    if regression:
        return Verdict.INCONCLUSIVE, (
            f"proven worse ({_odds(found.log_zero)}) but not by more than the margin"
        )
    return Verdict.INSUFFICIENT_SAMPLE, (
        f"evidence of harm {_odds(max(found.log_margin, found.log_zero))} of "
        f"{_odds(threshold)} needed, of safety {_odds(found.log_mirror)} of "
        f"{_odds(settings.log_promote)}"
    )


def _average(first: eprocess.Paths, second: eprocess.Paths) -> eprocess.Paths:
    """Mean e-values against "not worse", the smaller one for "safe"; the rates are the first's."""
    return eprocess.Paths(
        margin=np.logaddexp(first.margin, second.margin) - math.log(2.0),
        zero=np.logaddexp(first.zero, second.zero) - math.log(2.0),
        mirror=np.minimum(first.mirror, second.mirror),
        canary_rate=first.canary_rate,
        control_rate=first.control_rate,
    )


def _record(found: Evidence, settings: CheckSettings, *, margin_bp: int) -> dict[str, JSON]:
    return {
        "canary_n": found.canary_n,
        "canary_events": found.canary_events,
        "control_n": found.control_n,
        "control_events": found.control_events,
        "canary_rate": found.canary_rate,
        "control_rate": found.control_rate,
        "difference": found.difference,
        "margin_bp": margin_bp,
        "log_e_margin": found.log_margin,
        "log_e_zero": found.log_zero,
        "log_e_zero_beyond": found.log_zero_beyond,
        "log_e_mirror": found.log_mirror,
        "log_e_needed": settings.log_fail,
        "log_e_promote": settings.log_promote,
        "evidence_mode": settings.evidence_mode,
    }


def _no_data(check: str, canary_n: int, control_n: int) -> CheckResult:
    sides = [name for name, n in (("canary", canary_n), ("stable", control_n)) if n == 0]
    who = " and ".join(sides) or "canary and stable at the same time"
    return CheckResult(
        check,
        Verdict.NO_DATA,
        f"no exposures of {who} (canary n={canary_n}, stable n={control_n})",
        {"canary_n": canary_n, "control_n": control_n},
    )


def _percent(rate: float | None) -> str:
    return "unknown" if rate is None else f"{rate:.2%}" if rate < 0.001 else f"{rate:.1%}"


def _odds(log_e: float) -> str:
    """An e-value as people read odds: 12.3:1; huge ones by their power of ten."""
    if log_e > math.log(1e4):
        return f"10^{log_e / math.log(10):.0f}:1"
    return f"{math.exp(log_e):.3g}:1"
