"""Checks without a control: at 100 % nobody is left on stable, so absolute bounds take its place.

With k events of n, bound q and alternatives p_j > q, E = mean_j (p_j/q)^k·((1−p_j)/(1−q))^(n−k)
is a test supermartingale while the rate is at most q (a likelihood ratio against a smaller rate
than its denominator only shrinks), hence P(sup E ≥ 1/α) ≤ α by Ville's inequality: it may be looked
at always.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from apps.rollouts.verdicts import JSON, CheckResult, Verdict

MULTIPLES = (1.5, 2.0, 3.0, 6.0, 12.0)
RATE_MAX = 0.99


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


def _tell(objective: Objective) -> str:
    rate = objective.events / objective.n if objective.n else 0.0
    return f"{objective.label} {rate:.2%}, at most {objective.bound:.2%}, n={objective.n}"


def _log_evidence(objective: Objective) -> float:
    q, k, n = objective.bound, objective.events, objective.n
    if q >= RATE_MAX:
        # No alternative lies above such a bound, and one below it would accuse the healthy.
        return 0.0
    logs = []
    for multiple in MULTIPLES:
        p = min(RATE_MAX, q * multiple)
        logs.append(k * math.log(p / q) + (n - k) * (math.log1p(-p) - math.log1p(-q)))
    return _log_mean_exp(logs)


def _log_mean_exp(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs) / len(logs))
