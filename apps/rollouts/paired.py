"""Tests whether a shadow is less accurate than stable, by bets on requests that both answered.

Once the true value of a request is known, the shadow lost it (stable was right, the shadow wrong),
won it, or both were right or wrong alike. Only lost and won requests distinguish the versions
(McNemar 1947): difficulty for both cancels, so that pairs need few units. Pure: plain counts in,
evidence out, independent of the order in which true values arrive.
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
from apps.rollouts.verdicts import JSON, CheckResult, Verdict, format_percent

Array = NDArray[np.float64]

# The bets, as shares of the largest stake: small ones detect slight harm in many discordant pairs,
# large ones gross harm in few.
STAKES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8, 0.98)
WHOLE_BP = 10_000
# The number of steps from 0 to 1 in which losses are counted.
GRID = 100


@dataclass(frozen=True)
class PairCounts:
    """Requests that both versions answered and whose true value is known; at most one per unit.

    Of `pairs` the shadow lost `lost` and won `won`. `losses` are places of the grid and their
    weights: how much more the shadow lost, in steps of 1/GRID, from −1 to 1 for a pair. Raises
    ValueError unless 0 ≤ both ≤ pairs and the weights are those of the pairs.
    """

    pairs: int
    lost: int
    won: int
    losses: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        if min(self.lost, self.won) < 0 or self.lost + self.won > self.pairs:
            raise ValueError(f"{self.lost} lost and {self.won} won of {self.pairs} pairs")
        weight = sum(weight for _, weight in self.losses)
        if abs(weight - self.pairs) > 1e-6 * max(1, self.pairs):
            raise ValueError(f"losses of {weight:g} pairs, of {self.pairs}")

    @property
    def difference(self) -> float:
        """The shadow's loss of accuracy, as a fraction; 0 without pairs."""
        lost = sum(place * weight for place, weight in self.losses)
        return lost / (GRID * self.pairs) if self.pairs else 0.0


@dataclass(frozen=True)
class PairEvidence:
    """Natural logarithms of the evidence against three hypotheses about the shadow.

    `margin`: it is at most the margin less accurate. `zero`: it is not less accurate. `mirror`: it
    is at least the margin less accurate; refuting it proves that the shadow is accurate enough.
    """

    margin: Array
    zero: Array
    mirror: Array


def pair_evidence(
    pairs: ArrayLike, lost: ArrayLike, won: ArrayLike, *, margin: float
) -> PairEvidence:
    """Return the evidence of counts; arrays of one shape, as are the results.

    Raises ValueError unless 0 < margin < 1.
    """
    up, down = np.asarray(lost, np.float64), np.asarray(won, np.float64)
    rest = np.asarray(pairs, np.float64) - up - down
    return loss_evidence((1.0, -1.0, 0.0), np.stack([up, down, rest], axis=-1), margin=margin)


def loss_evidence(losses: ArrayLike, weights: ArrayLike, *, margin: float) -> PairEvidence:
    """Return the evidence of the frequencies of losses.

    `losses` has shape (k,), each how much more the shadow lost in a pair, from −1 to 1; `weights`
    has shape (..., k). Each pair with the loss x multiplies the wealth of the bet λ by
    1 + λ(x − δ), whose expectation is at most 1 while E[x] ≤ δ; so the mean over fixed bets is a
    test supermartingale, and P(sup E ≥ 1/α) ≤ α at any look (Ville; Waudby-Smith and Ramdas,
    Estimating means of bounded random variables by betting, 2024). With x in {−1, 0, 1} and δ = 0
    pairs with equal results change nothing, and it is McNemar's test. The mirror bets on −x, with
    −δ. As bets are fixed, weights are sufficient; a pair may be shared between two losses whose
    mean is its own, since the logarithm is concave: that only makes the evidence smaller. Raises
    ValueError unless 0 < margin < 1.
    """
    if not 0.0 < margin < 1.0:
        raise ValueError("the margin must be between 0 and 1")
    x, n = np.asarray(losses, np.float64), np.asarray(weights, np.float64)
    return PairEvidence(
        margin=_log_wealth(x, n, margin),
        zero=_log_wealth(x, n, 0.0),
        mirror=_log_wealth(-x, n, -margin),
    )


def _log_wealth(losses: Array, weights: Array, delta: float) -> Array:
    # Wealth must stay positive at the worst pair, x = −1: λ < 1/(1 + δ).
    bets = np.array(STAKES) / (1.0 + delta)
    logs = weights @ np.log1p(np.outer(losses - delta, bets))
    mean: Array = np.logaddexp.reduce(logs, axis=-1) - math.log(len(STAKES))
    return mean


def judge_pairs(
    check: CheckDocument, observation: Mapping[str, Any], settings: CheckSettings
) -> CheckResult:
    """Judge a check from observed pairs, with the margin of its settings.

    Fail: "less accurate by more than the margin" is proven, or, in the mode any_regression, "less
    accurate" is proven and the estimate exceeds the margin. Pass: "less accurate by the margin" is
    refuted. Otherwise it is undecided.
    """
    counts = PairCounts(
        pairs=int(observation.get("pairs", 0)),
        lost=int(observation.get("lost", 0)),
        won=int(observation.get("won", 0)),
        losses=tuple((int(place), float(weight)) for place, weight in observation.get("grid", ())),
    )
    margin = int(check.setting("margin_bp")) / WHOLE_BP
    record: dict[str, JSON] = {
        "n": counts.pairs, "lost": counts.lost, "won": counts.won, "margin": margin,
        "kept": int(observation.get("kept", 0)), "difference": counts.difference,
    }  # fmt: skip
    if not counts.pairs:
        return CheckResult(check.label, Verdict.NO_DATA, _no_data_reason(observation), record)
    places, weights = zip(*counts.losses, strict=True)
    evidence = loss_evidence(np.array(places) / GRID, weights, margin=margin)
    logs = float(evidence.margin), float(evidence.zero), float(evidence.mirror)
    record |= dict(zip(("log_margin", "log_zero", "log_mirror"), logs, strict=True))
    verdict, conclusion = _verdict(counts, margin, logs, settings)
    figures = _describe(check, counts, margin)
    return CheckResult(check.label, verdict, f"{figures}: {conclusion}", record)


def _no_data_reason(observation: Mapping[str, Any]) -> str:
    metric, kept = observation.get("metric", "the metric"), int(observation.get("kept", 0))
    if kept:
        return f"no outcome of {metric} yet for any of the {kept:,} requests that both answered"
    if observation.get("unreadable"):
        return (
            f"{int(observation['unreadable']):,} answers have no number to compare with {metric}: "
            "a class must be a numeric label or the largest of several scores, a score one or two "
            "numbers"
        )
    return "no single-row request was answered by both stable and the shadow yet"


def _verdict(
    counts: PairCounts, margin: float, logs: tuple[float, float, float], settings: CheckSettings
) -> tuple[Verdict, str]:
    log_margin, log_zero, log_mirror = logs
    needed = math.log(settings.guardrails / settings.alpha)
    if log_margin >= needed:
        return Verdict.FAIL, "proven less accurate by more than the margin"
    if log_zero >= needed:
        if counts.difference > margin and settings.evidence_mode == "any_regression":
            return Verdict.FAIL, "proven less accurate, and the estimate exceeds the margin"
        return Verdict.INCONCLUSIVE, "proven less accurate, but not by more than the margin"
    if log_mirror >= -math.log(settings.alpha_promote):
        return Verdict.PASS, "proven not less accurate by the margin"
    return Verdict.INSUFFICIENT_SAMPLE, "too few pairs for a decision"


def _describe(check: CheckDocument, counts: PairCounts, margin: float) -> str:
    lost, won = counts.lost, counts.won
    if check.setting("scale") is None:
        compared = f"the shadow alone wrong in {lost:,}, stable alone in {won:,}"
    else:
        rate = f", win rate {format_percent(won / (lost + won), 1)}" if lost + won else ""
        compared = f"the shadow nearer in {won:,}, stable in {lost:,}{rate}"
    word = "less" if counts.difference >= 0 else "more"
    return (
        f"the shadow is {format_percent(abs(counts.difference))} {word} accurate than stable, "
        f"margin {format_percent(margin)}, after {counts.pairs:,} requests that both answered "
        f"({compared})"
    )
