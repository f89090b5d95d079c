"""Is a shadow less accurate than stable? A betting test on requests that both of them answered.

Once the truth of a request is known, the shadow lost it (stable was right, the shadow wrong), won
it, or both were right or wrong alike. Only lost and won ones tell the versions apart (McNemar
1947): what is hard for both cancels, which is why pairs need so few units. Pure: plain counts in,
evidence out; the order in which truths arrive changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.checks import CheckSettings
from apps.rollouts.verdicts import JSON, CheckResult, Verdict

Array = NDArray[np.float64]

# The bets, as shares of what may be staked at most: small ones find slight harm in many discordant
# pairs, large ones gross harm in few.
STAKES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8, 0.98)
WHOLE_BP = 10_000


@dataclass(frozen=True)
class PairCounts:
    """Requests that both versions answered and whose truth is known; at most one of each unit.

    Of `pairs` the shadow lost `lost` and won `won`. Raises ValueError unless 0 ≤ both ≤ pairs.
    """

    pairs: int
    lost: int
    won: int

    def __post_init__(self) -> None:
        if min(self.lost, self.won) < 0 or self.lost + self.won > self.pairs:
            raise ValueError(f"{self.lost} lost and {self.won} won of {self.pairs} pairs")

    @property
    def difference(self) -> float:
        """How much less accurate the shadow is, a fraction; 0 without pairs."""
        return (self.lost - self.won) / self.pairs if self.pairs else 0.0


@dataclass(frozen=True)
class PairEvidence:
    """Natural logarithms of the evidence against three hypotheses about the shadow.

    `margin`: it is at most the margin less accurate. `zero`: it is not less accurate. `mirror`: it
    is at least the margin less accurate; to refute that proves that it is good enough.
    """

    margin: Array
    zero: Array
    mirror: Array


def pair_evidence(
    pairs: ArrayLike, lost: ArrayLike, won: ArrayLike, *, margin: float
) -> PairEvidence:
    """Return the evidence of counts, arrays of one shape, which the results have as well.

    With x = 1 for a lost pair, −1 for a won one, 0 for others, each pair multiplies the wealth of
    the bet λ by 1 + λ(x − δ), whose expectation is at most 1 while E[x] ≤ δ; so the mean over fixed
    bets is a test supermartingale, and P(sup E ≥ 1/α) ≤ α whenever one looks (Ville; Waudby-Smith
    and Ramdas, Estimating means of bounded random variables by betting, 2024). At δ = 0 others
    change nothing, and it is McNemar's test. The mirror bets on −x, with −δ. As bets are fixed,
    counts are sufficient. Raises ValueError unless 0 < margin < 1.
    """
    if not 0.0 < margin < 1.0:
        raise ValueError("the margin must lie between 0 and 1")
    up, down = np.asarray(lost, np.float64), np.asarray(won, np.float64)
    rest = np.asarray(pairs, np.float64) - up - down
    return PairEvidence(
        margin=_log_wealth(up, down, rest, margin),
        zero=_log_wealth(up, down, rest, 0.0),
        mirror=_log_wealth(down, up, rest, -margin),
    )


def _log_wealth(up: Array, down: Array, rest: Array, delta: float) -> Array:
    # The worst pair, x = −1, must leave something: λ < 1/(1 + δ).
    bets = np.array(STAKES) / (1.0 + delta)
    logs = (
        up[..., None] * np.log1p(bets * (1.0 - delta))
        + down[..., None] * np.log1p(-bets * (1.0 + delta))
        + rest[..., None] * np.log1p(-bets * delta)
    )
    mean: Array = np.logaddexp.reduce(logs, axis=-1) - math.log(len(STAKES))
    return mean


def judge_pairs(
    check: CheckDocument, seen: Mapping[str, Any], settings: CheckSettings
) -> CheckResult:
    """Answer a check from `pairs`, `lost` and `won`, with the margin `margin_bp` of its settings.

    Fail: less accurate by more than the margin is proven, or, unless the evidence must be beyond
    the margin, less accurate is and the estimate is beyond it. Pass: less accurate by the margin is
    refuted. Else it is not decided.
    """
    counts = PairCounts(*(int(seen.get(name, 0)) for name in ("pairs", "lost", "won")))
    margin = int(check.setting("margin_bp")) / WHOLE_BP
    record: dict[str, JSON] = {
        "n": counts.pairs, "lost": counts.lost, "won": counts.won, "margin": margin,
    }  # fmt: skip
    if not counts.pairs:
        told = str(seen.get("nothing") or "no request that both answered has its truth yet")
        return CheckResult(check.label, Verdict.NO_DATA, told, record)
    found = pair_evidence(counts.pairs, counts.lost, counts.won, margin=margin)
    log_margin, log_zero, log_mirror = map(float, (found.margin, found.zero, found.mirror))
    record |= {"log_margin": log_margin, "log_zero": log_zero, "log_mirror": log_mirror}
    verdict, why = _verdict(counts, margin, (log_margin, log_zero, log_mirror), settings)
    return CheckResult(check.label, verdict, f"{_sentence(counts, margin)}: {why}", record)


def _verdict(
    counts: PairCounts, margin: float, logs: tuple[float, float, float], settings: CheckSettings
) -> tuple[Verdict, str]:
    log_margin, log_zero, log_mirror = logs
    needed = math.log(settings.guardrails / settings.alpha)
    if log_margin >= needed:
        return Verdict.FAIL, "proven less accurate by more than the margin"
    if log_zero >= needed:
        if counts.difference > margin and settings.evidence_mode == "any_regression":
            return Verdict.FAIL, "proven less accurate, and by more than the margin as estimated"
        return Verdict.INCONCLUSIVE, "proven less accurate, but not by more than the margin"
    if log_mirror >= -math.log(settings.alpha_promote):
        return Verdict.PASS, "proven not less accurate by the margin"
    return Verdict.INSUFFICIENT_SAMPLE, "too few pairs to tell"


def _sentence(counts: PairCounts, margin: float) -> str:
    word = "less" if counts.difference >= 0 else "more"
    return (
        f"of {counts.pairs:,} requests that both answered the shadow alone was wrong in "
        f"{counts.lost:,} and stable alone in {counts.won:,}: {abs(counts.difference):.2%} {word} "
        f"accurate, margin {margin:.2%}"
    )
