"""Absolute bounds: beside the control, of a shadow's answers, or where nobody is left on stable.

With k events of n, bound q and alternatives p_j > q, E = mean_j (p_j/q)^k·((1−p_j)/(1−q))^(n−k)
is a test supermartingale while the rate is at most q (a likelihood ratio against a smaller rate
than its denominator only shrinks; Wald 1945), hence P(sup E ≥ 1/α) ≤ α by Ville's inequality: it
may be looked at always.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apps.rollouts.check_kinds import ERROR_OBJECTIVE, LATENCY_OBJECTIVE, SHADOW_AGREEMENT
from apps.rollouts.checks import SHARE_WHOLE_BP, CheckSettings
from apps.rollouts.verdicts import JSON, CheckResult, Verdict
from contract import histogram

MULTIPLES = (1.5, 2.0, 3.0, 6.0, 12.0)
RATE_MAX = 0.99
# Stands for an infinite e-value, which JSON cannot hold: e^700 is near the largest float.
LOG_CERTAIN = 700.0


@dataclass(frozen=True)
class Objective:
    """At most `bound` of the exposures may be events; `label` says of what."""

    label: str
    bound: float
    n: int
    events: int


def judge_objectives(
    check: str,
    objectives: Sequence[Objective],
    *,
    log_needed: float,
    samples_min: int,
    basis: str = "no control at 100 %, absolute bounds",
) -> CheckResult:
    """Judge absolute bounds together; the e-values are averaged, valid under any dependence.

    `basis` says in the reason why the bounds are absolute ones.
    """
    n = min((objective.n for objective in objectives), default=0)
    told = f"{basis}: " + "; ".join(map(_tell, objectives))
    record: dict[str, JSON] = {"log_e_needed": log_needed, "n": n, "absolute": True}
    if n == 0:
        return CheckResult(check, Verdict.NO_DATA, f"{told}: no exposures", {"n": 0})
    log_e = _log_mean_exp([_log_evidence(objective) for objective in objectives])
    evidence: dict[str, JSON] = {**record, "log_e_absolute": log_e}
    if log_e >= log_needed:
        return CheckResult(check, Verdict.FAIL, f"{told}: proven beyond", evidence)
    if n < samples_min:
        return CheckResult(check, Verdict.INSUFFICIENT_SAMPLE, f"{told}: too few", evidence)
    if all(objective.events <= objective.bound * objective.n for objective in objectives):
        return CheckResult(check, Verdict.PASS, f"{told}: within", evidence)
    return CheckResult(check, Verdict.INCONCLUSIVE, f"{told}: beyond, but not proven", evidence)


def judge_error_objective(
    *, n: int, errors: int, limit_bp: int, settings: CheckSettings
) -> CheckResult:
    """At most `limit_bp` of 10,000 units may err, whatever stable does."""
    objective = Objective("error rate", limit_bp / SHARE_WHOLE_BP, n, errors)
    return judge_objectives(
        ERROR_OBJECTIVE,
        [objective],
        log_needed=settings.log_fail,
        samples_min=settings.min_samples,
        basis="absolute bound",
    )


def judge_latency_objective(
    counts: Mapping[int, int], *, quantile_permille: int, limit_us: int, settings: CheckSettings
) -> CheckResult:
    """The quantile of the canary's latency must lie within `limit_us`: at most 1 − q may be slower.

    `counts` is a histogram. It cannot split the bucket that holds the limit, so that up to 9 %
    beyond it still counts as within: a canary at its limit is not condemned by rounding.
    """
    limit = f"{limit_us / 1000:g} ms"
    objective = Objective(
        f"slower than {limit}",
        1.0 - quantile_permille / 1000,
        histogram.total(counts),
        histogram.count_above(counts, histogram.index_of(limit_us)),
    )
    found = judge_objectives(
        LATENCY_OBJECTIVE,
        [objective],
        log_needed=settings.log_fail,
        samples_min=settings.min_samples,
        basis=f"p{quantile_permille / 10:g} within {limit}",
    )
    quantile = histogram.quantile_us(counts, quantile_permille / 1000)
    evidence = {**found.evidence, "quantile_us": quantile, "limit_us": limit_us}
    return CheckResult(found.check, found.verdict, found.reason, evidence)


def judge_shadow_agreement(
    *,
    compared: int,
    flips: int,
    beyond_tolerance: int,
    errors: int,
    dropped: int,
    agreement_min_bp: int,
    compared_min: int,
    settings: CheckSettings,
) -> CheckResult:
    """Of the answers that a shadow gave or failed to give, enough must be like stable's.

    `compared` answers had both sides. One may differ in its class (`flips`) and in its numbers
    (`beyond_tolerance`); both counts may hold the same answers, so that only the larger one is
    certain. An error of the shadow is a disagreement; a copy that was dropped is no data.
    Raises ValueError for more differing answers than compared ones.
    """
    differing = max(flips, beyond_tolerance)
    if differing > compared:
        raise ValueError(f"{differing} differing answers of {compared} compared ones")
    bound = 1.0 - agreement_min_bp / SHARE_WHOLE_BP
    found = judge_objectives(
        SHADOW_AGREEMENT,
        [Objective("answers unlike stable's", bound, compared + errors, differing + errors)],
        log_needed=settings.log_fail,
        samples_min=compared_min,
        basis="copied requests",
    )
    evidence: dict[str, JSON] = {
        **found.evidence,
        "compared": compared,
        "flips": flips,
        "beyond_tolerance": beyond_tolerance,
        "errors": errors,
        "dropped": dropped,
    }
    unseen = f"; {dropped} copies dropped and not judged" if dropped else ""
    return CheckResult(found.check, found.verdict, found.reason + unseen, evidence)


def _tell(objective: Objective) -> str:
    rate = objective.events / objective.n if objective.n else 0.0
    return f"{objective.label} {rate:.2%}, at most {objective.bound:.2%}, n={objective.n}"


def _log_evidence(objective: Objective) -> float:
    q, k, n = objective.bound, objective.events, objective.n
    if q >= RATE_MAX:
        # No alternative lies above such a bound, and one below it would accuse the healthy.
        return 0.0
    if q <= 0.0:
        # One event refutes "never"; without any the best alternative is that very bound.
        return LOG_CERTAIN if k else 0.0
    logs = []
    for multiple in MULTIPLES:
        p = min(RATE_MAX, q * multiple)
        logs.append(k * math.log(p / q) + (n - k) * (math.log1p(-p) - math.log1p(-q)))
    return _log_mean_exp(logs)


def _log_mean_exp(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs) / len(logs))
