"""Paired answers with known true values decide which version is more accurate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from apps.rollouts.checks import CheckSettings
from apps.rollouts.paired import GRID, PairCounts, judge_pairs, loss_evidence, pair_evidence
from apps.rollouts.verdicts import CheckResult, Verdict

SETTINGS = CheckSettings(alpha=0.05, alpha_promote=0.1, guardrails=2)


@dataclass(frozen=True)
class Check:
    """A check of a plan."""

    label: str = "shadow-accuracy"
    settings: dict[str, Any] = field(default_factory=lambda: {"margin_bp": 100})

    def setting(self, name: str) -> Any:
        return self.settings.get(name)


def observe(**observation: Any) -> dict[str, Any]:
    """Return the observation of these counts."""
    if "pairs" in observation:
        rest = observation["pairs"] - observation["lost"] - observation["won"]
        observation["grid"] = [[-GRID, observation["won"]], [0, rest], [GRID, observation["lost"]]]
    return observation


def judged(**observation: Any) -> CheckResult:
    return judge_pairs(Check(), observe(**observation), SETTINGS)  # type: ignore[arg-type]


@pytest.mark.parametrize("margin", [0.005, 0.01, 0.2])
@pytest.mark.parametrize("won", [0.0, 0.05, 0.3])
def test_no_bet_gains_on_average_while_its_hypothesis_holds(margin: float, won: float) -> None:
    one_of_each = pair_evidence([1, 1, 1], [1, 0, 0], [0, 1, 0], margin=margin)

    equal = np.array([won, won, 1 - 2 * won])
    assert equal @ np.exp(one_of_each.zero) == pytest.approx(1.0, abs=1e-12)
    at_margin = np.array([won + margin, won, 1 - 2 * won - margin])
    assert at_margin @ np.exp(one_of_each.margin) == pytest.approx(1.0, abs=1e-12)
    assert at_margin @ np.exp(one_of_each.mirror) == pytest.approx(1.0, abs=1e-12)


def test_equal_pairs_do_not_change_the_test_of_a_difference() -> None:
    few = pair_evidence(100, 30, 10, margin=0.01)
    many = pair_evidence(10_000, 30, 10, margin=0.01)

    assert few.zero == many.zero
    # But everything about how large it is.
    assert few.margin > many.margin
    assert few.mirror < many.mirror


@pytest.mark.parametrize(
    ("observation", "verdict", "words"),
    [
        ({}, Verdict.NO_DATA, "no single-row request was answered"),
        (
            {"kept": 7, "metric": "label"},
            Verdict.NO_DATA,
            "no outcome of label yet for any of the 7",
        ),
        ({"pairs": 50, "lost": 1, "won": 1}, Verdict.INSUFFICIENT_SAMPLE, "too few pairs"),
        ({"pairs": 1_000, "lost": 60, "won": 5}, Verdict.FAIL, "by more than the margin"),
        ({"pairs": 900, "lost": 27, "won": 8}, Verdict.FAIL, "the estimate exceeds the margin"),
        ({"pairs": 9_000, "lost": 60, "won": 20}, Verdict.INCONCLUSIVE, "but not by more"),
        ({"pairs": 2_000, "lost": 9, "won": 10}, Verdict.PASS, "0.05 % more accurate"),
        ({"pairs": 400, "lost": 0, "won": 0}, Verdict.PASS, "0.00 % less accurate"),
    ],
)
def test_a_verdict_comes_with_its_numbers(observation: Any, verdict: Verdict, words: str) -> None:
    result = judged(**observation)

    assert (result.verdict, result.check) == (verdict, "shadow-accuracy")
    assert words in result.reason
    assert all(not isinstance(v, float) or math.isfinite(v) for v in result.evidence.values())


def test_impossible_counts_are_refused() -> None:
    for counts in ((1, 1, 1), (1, -1, 0), (1, 0, 2)):
        with pytest.raises(ValueError, match="pairs"):
            PairCounts(*counts, losses=((0, float(counts[0])),))
    with pytest.raises(ValueError, match="losses of 2 pairs, of 1"):
        PairCounts(1, 0, 0, losses=((0, 2.0),))
    with pytest.raises(ValueError, match="margin"):
        pair_evidence(1, 0, 0, margin=0.0)


def test_a_rollout_may_require_proof_beyond_the_margin() -> None:
    strict = CheckSettings(alpha=0.05, guardrails=2, evidence_mode="beyond_margin")
    observation = observe(pairs=900, lost=27, won=8)

    result = judge_pairs(Check(), observation, strict)  # type: ignore[arg-type]

    assert result.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("seed", range(3))
def test_a_loss_between_two_places_counts_no_more_than_it_should(seed: int) -> None:
    """A loss shared between neighbours keeps its mean, and proves slightly less, never more."""
    losses = np.random.default_rng(seed).uniform(-1.0, 1.0, 500)
    exact = loss_evidence(losses, np.ones(500), margin=0.02)
    places = np.floor(losses * GRID)
    above = losses * GRID - places
    grid = np.concatenate([places, places + 1]) / GRID
    shared = loss_evidence(grid, np.concatenate([1 - above, above]), margin=0.02)

    for name in ("margin", "zero", "mirror"):
        exact_value, kept = float(getattr(exact, name)), float(getattr(shared, name))
        assert exact_value - 0.05 < kept <= exact_value + 1e-9


def test_scores_have_a_win_rate() -> None:
    check = Check(settings={"margin_bp": 100, "scale": 2.0})
    observation = {"pairs": 10, "lost": 2, "won": 6, "grid": [[-5, 10.0]]}

    result = judge_pairs(check, observation, SETTINGS)  # type: ignore[arg-type]

    assert "the shadow is 5.00 % more accurate than stable" in result.reason
    assert "the shadow nearer in 6, stable in 2, win rate 75.0 %" in result.reason
