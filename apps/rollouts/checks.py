"""The checks that judge a canary against stable over the same seconds, as pure functions.

Only `fail` may roll back and only `pass` may let a step pass. Missing data is never either of them.
The e-process evidence in here may be looked at as often as the reconciler likes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from apps.rollouts import eprocess
from apps.rollouts.check_kinds import ERROR_RATE, LATENCY
from apps.rollouts.eprocess import BucketCounts, Evidence
from apps.rollouts.verdicts import JSON, CheckResult, Verdict

EvidenceMode = Literal["any_regression", "beyond_margin"]

# Latency's e-values are averaged with these weights, fixed beforehand. A slow tail shows at p99
# alone and there in few requests, so that p99 has most of the stake; what slows all requests shows
# at p50 so soon that a fifth is plenty.
QUANTILES_PERMILLE = (500, 950, 990)
QUANTILE_WEIGHTS = {500: 0.2, 950: 0.2, 990: 0.6}

SHARE_WHOLE_BP = 10_000


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

    def quantile_margin(self, permille: int) -> float:
        """The tolerated surplus of requests slower than one of stable's quantiles, a fraction."""
        margins = {500: self.p50_margin_bp, 950: self.p95_margin_bp, 990: self.p99_margin_bp}
        return margins[permille] / SHARE_WHOLE_BP

    @property
    def log_promote(self) -> float:
        return -math.log(self.alpha_promote)


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
    *,
    p50_buckets: Sequence[BucketCounts] | None = None,
) -> CheckResult:
    """Latency, as counts of requests slower than stable's quantiles, frozen before the rollout.

    All sequences hold the same intervals in the same order; ValueError if their lengths differ.
    `p50_buckets` is None for a rollout whose reference was frozen without a p50. The e-values of
    each null are averaged with fixed weights, which is valid under any dependence between them
    (Vovk and Wang 2021). Proof of safety needs every mirror process, hence the smallest one: an
    average would let a safe p95 vouch for an unsafe p99.
    """
    given = dict(zip(QUANTILES_PERMILLE, (p50_buckets, p95_buckets, p99_buckets), strict=True))
    buckets = {permille: rows for permille, rows in given.items() if rows is not None}
    if len({len(rows) for rows in buckets.values()}) != 1:
        raise ValueError("the quantiles' buckets must be of the same intervals")
    counts = {permille: eprocess.counts_of(rows) for permille, rows in buckets.items()}
    paths = {permille: follow_latency(counts[permille], permille, settings) for permille in counts}
    found, record = {}, {}
    for permille, path in paths.items():
        margin = settings.quantile_margin(permille)
        of_one = eprocess.summarise(buckets[permille], path, beyond=path.exceeds(margin))
        found[permille] = of_one
        record[f"p{permille // 10}"] = _record(
            of_one, settings, margin_bp=round(margin * SHARE_WHOLE_BP)
        )
    if any(of_one.difference is None for of_one in found.values()):
        return _no_data(LATENCY, found[950].canary_n, found[950].control_n)
    joint, beyond = join_latency(paths, settings)
    whole = eprocess.summarise(p95_buckets, joint, beyond=beyond)
    verdict, why = _decide(whole, settings)
    evidence: dict[str, JSON] = {
        **record,
        "log_e_margin": whole.log_margin,
        "log_e_zero": whole.log_zero,
        "log_e_zero_beyond": whole.log_zero_beyond,
        "log_e_mirror": whole.log_mirror,
    }
    return CheckResult(LATENCY, verdict, f"{_tell_latency(found, settings)}: {why}", evidence)


def follow_latency(
    counts: eprocess.Counts, permille: int, settings: CheckSettings
) -> eprocess.Paths:
    """The evidence of one quantile's exceedances."""
    return eprocess.follow(
        counts,
        margin=settings.quantile_margin(permille),
        expected_rate=1.0 - permille / 1000,
        bets=eprocess.FREQUENT,
    )


def join_latency(
    paths: Mapping[int, eprocess.Paths], settings: CheckSettings
) -> tuple[eprocess.Paths, eprocess.Flags]:
    """Weighted mean e-values against "not slower", the smallest for "safe"; and where any estimate
    is beyond its margin. The rates are those of p95."""
    whole = sum(QUANTILE_WEIGHTS[permille] for permille in paths)
    stakes = {permille: math.log(QUANTILE_WEIGHTS[permille] / whole) for permille in paths}
    joint = eprocess.Paths(
        margin=np.logaddexp.reduce([path.margin + stakes[q] for q, path in paths.items()]),
        zero=np.logaddexp.reduce([path.zero + stakes[q] for q, path in paths.items()]),
        mirror=np.minimum.reduce([path.mirror for path in paths.values()]),
        canary_rate=paths[950].canary_rate,
        control_rate=paths[950].control_rate,
    )
    beyond: eprocess.Flags = np.logical_or.reduce(
        [path.exceeds(settings.quantile_margin(q)) for q, path in paths.items()]
    )
    return joint, beyond


def _tell_latency(found: Mapping[int, Evidence], settings: CheckSettings) -> str:
    parts = [
        f"p{permille // 10}: {_percent(of_one.canary_rate)} vs {_percent(of_one.control_rate)}, "
        f"margin {_percent(settings.quantile_margin(permille))}"
        for permille, of_one in found.items()
    ]
    return f"slower than stable's {'; '.join(parts)}; n={found[950].canary_n}"


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
