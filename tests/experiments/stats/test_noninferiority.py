"""A margin's bounds hold at every look, at every share, and whatever hits both arms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from apps.experiments.stats.moments import Moments
from apps.experiments.stats.noninferiority import NonInferiority, Stratum, compare_strata
from apps.experiments.stats.sequential import boundary

RNG = np.random.default_rng(4)
ALPHA = 0.05


def rate(n: int, events: int) -> Moments:
    return Moments(n, events / n, events * (1 - events / n)) if n else Moments()


def compare(*strata: Stratum, kind: str = "proportion", better: bool = True) -> NonInferiority:
    return compare_strata(
        strata,
        kind="mean" if kind == "mean" else "proportion",
        is_increase_better=better,
        alpha_pass=0.1,
        alpha_fail=ALPHA,
    )


def test_of_one_step_it_is_the_plain_difference_with_the_sequence_of_experiments() -> None:
    canary, control = Moments.of([1.0, 3.0] * 200), Moments.of([2.0, 6.0] * 400)
    found = compare(Stratum(canary, control), kind="mean")
    error = math.sqrt(1.0 * 400 / 399 / 400 + 4.0 * 800 / 799 / 800)
    assert found.difference == pytest.approx(-2.0)
    assert found.high == pytest.approx(-2.0 + error * boundary(1_200, ALPHA, None)[0])
    assert found.low == pytest.approx(-2.0 - error * boundary(1_200, 0.1, None)[0])


def test_the_direction_says_what_is_better() -> None:
    stratum = Stratum(rate(1_000, 200), rate(1_000, 100))
    up, down = compare(stratum), compare(stratum, better=False)
    assert up.difference == pytest.approx(0.1)
    assert down.difference == pytest.approx(-0.1)


def test_what_hits_both_arms_in_a_later_step_is_no_difference() -> None:
    usual = Stratum(rate(500, 50), rate(9_500, 950))
    incident = Stratum(rate(5_000, 2_000), rate(5_000, 2_000))
    assert compare(usual, incident).difference == pytest.approx(0.0)
    pooled = compare(Stratum(rate(5_500, 2_050), rate(14_500, 2_950)))
    assert pooled.low is not None
    assert pooled.low > 0.1


@pytest.mark.parametrize(
    ("strata", "why"),
    [
        ([], "no step has units of both"),
        ([Stratum(rate(500, 50), rate(0, 0))], "no step has units of both"),
        ([Stratum(rate(99, 9), rate(500, 50))], "at least 100 units"),
        ([Stratum(rate(500, 0), rate(500, 0))], "events and non-events"),
    ],
)
def test_too_little_data_has_no_bounds(strata: list[Stratum], why: str) -> None:
    found = compare(*strata)
    assert found.silent is not None
    assert why in found.silent
    assert found.low is None
    assert found.high is None


def test_values_that_do_not_vary_have_no_bounds() -> None:
    found = compare(Stratum(Moments(500, 2.0, 0.0), Moments(500, 1.0, 0.0)), kind="mean")
    assert found.silent == "the values of neither arm vary"


def test_a_step_that_only_one_arm_met_counts_for_nothing() -> None:
    both = Stratum(rate(500, 50), rate(500, 50))
    assert compare(both, Stratum(rate(0, 0), rate(900, 9))) == compare(both)


def looks(p_canary: float, p_control: float, shares: tuple[float, ...]) -> list[NonInferiority]:
    """Look after every 500 units of a rollout with 5,000 in each step."""
    done: list[Stratum] = []
    found = []
    for share in shares:
        canary = RNG.binomial(500, share, size=10).cumsum()
        events = RNG.binomial(np.diff(canary, prepend=0), p_canary).cumsum()
        control = np.arange(500, 5_001, 500) - canary
        others = RNG.binomial(np.diff(control, prepend=0), p_control).cumsum()
        for n1, k1, n0, k0 in zip(canary, events, control, others, strict=True):
            current = Stratum(rate(int(n1), int(k1)), rate(int(n0), int(k0)))
            found.append(compare(*done, current))
        done.append(current)
    return found


def ever_fails(runs: int, p_canary: float, p_control: float, margin: float) -> float:
    failed = 0
    for _ in range(runs):
        seen = looks(p_canary, p_control, (0.05, 0.1, 0.25, 0.5))
        failed += any(each.high is not None and each.high < -margin for each in seen)
    return failed / runs


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5])
def test_a_canary_exactly_at_the_margin_seldom_fails_at_forty_looks(p: float) -> None:
    assert ever_fails(300, p - p / 5, p, p / 5) <= ALPHA


def test_a_much_worse_canary_is_found() -> None:
    assert ever_fails(100, 0.1, 0.2, 0.02) >= 0.95


def test_a_canary_worse_by_the_margin_seldom_passes() -> None:
    passed = 0
    for _ in range(200):
        seen = looks(0.08, 0.1, (0.05, 0.1, 0.25, 0.5))
        passed += any(each.low is not None and each.low > -0.02 for each in seen)
    assert passed / 200 <= 0.1
