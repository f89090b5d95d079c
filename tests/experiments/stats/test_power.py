"""Sample sizes and powers agree with statsmodels, with simulated paths, and with each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.power import TTestIndPower, normal_power_het

from apps.experiments.stats.power import (
    LOOKS,
    Baseline,
    Design,
    detectable,
    level_of,
    margin_units,
    power_at,
    units_needed,
)
from apps.experiments.stats.sequential import boundary

HALVES = (0.5, 0.5)


def test_ten_against_twelve_per_cent_takes_3841_units_for_each_arm() -> None:
    assert units_needed(Baseline(0.10), Design(HALVES, 0.05), 0.02) == 2 * 3_841


@pytest.mark.parametrize("effect", [0.02, -0.02, 0.3])
@pytest.mark.parametrize("shares", [HALVES, (0.95, 0.05), (0.2, 0.1)])
def test_the_power_of_rates_is_that_of_statsmodels(
    shares: tuple[float, float], effect: float
) -> None:
    rate, units = 0.1, 2_000
    first, second = shares
    pooled = (first * rate + second * (rate + effect)) / (first + second)
    null = math.sqrt(pooled * (1 - pooled) * (1 / first + 1 / second))
    other = rate + effect
    real = math.sqrt(rate * (1 - rate) / first + other * (1 - other) / second)
    expected = normal_power_het(effect, units, 0.05, null, real, "two-sided")

    power = power_at(Baseline(rate), Design(shares, 0.05), effect, units)

    assert power == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("shares", [HALVES, (0.95, 0.05)])
@pytest.mark.parametrize(("units", "effect"), [(40, 1.0), (400, 0.3), (10_000, 0.05)])
def test_the_power_of_means_is_that_of_statsmodels(
    shares: tuple[float, float], units: int, effect: float
) -> None:
    control = units * shares[0]
    expected = TTestIndPower().power(effect, control, 0.05, shares[1] / shares[0])

    power = power_at(Baseline(10.0, 1.0), Design(shares, 0.05), effect, units)

    assert power == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("is_sequential", [False, True])
@pytest.mark.parametrize("baseline", [Baseline(0.05), Baseline(20.0, 35.0)])
def test_the_minimum_detectable_effect_of_the_needed_units_is_the_effect(
    baseline: Baseline, is_sequential: bool
) -> None:
    design = Design((0.6, 0.2), 0.025, 0.9)
    effect = baseline.mean * 0.1
    units = units_needed(baseline, design, effect, is_sequential=is_sequential)
    assert units is not None

    smallest = detectable(baseline, design, units, is_sequential=is_sequential)
    power = power_at(baseline, design, effect, units, is_sequential=is_sequential)

    assert smallest == pytest.approx(effect, rel=1e-3)
    assert power == pytest.approx(0.9, abs=2e-3)


def crossings(level: float, effect: float, units: int, looks: int, paths: int) -> float:
    """Return the share of simulated paths that cross the boundary at one of `looks` looks."""
    rng = np.random.default_rng(7)
    share = np.arange(1, looks + 1) / looks
    bound = np.array([boundary(max(2, int(u * units)), level, units)[0] for u in share])
    shift = effect * math.sqrt(units) / 2
    crossed = 0
    for _ in range(paths // 1_000):
        steps = rng.normal(shift / looks, math.sqrt(1 / looks), (1_000, looks))
        crossed += (np.cumsum(steps, axis=1) / np.sqrt(share) >= bound).any(axis=1).sum()
    return float(crossed / paths)


@pytest.mark.parametrize(("level", "effect"), [(0.05, 0.035), (0.025, 0.045), (0.0125, 0.04)])
def test_the_power_of_the_sequence_is_that_of_simulated_paths(level: float, effect: float) -> None:
    units, paths = 40_000, 10_000
    power = power_at(Baseline(1.0, 1.0), Design(HALVES, level), effect, units, is_sequential=True)

    simulated = crossings(level, effect, units, LOOKS, paths)

    assert abs(simulated - power) < 4 * math.sqrt(power * (1 - power) / paths)


@pytest.mark.parametrize("looks", [50, 200, 1_000])
@pytest.mark.parametrize("level", [0.05, 0.025, 0.005])
def test_the_sequential_size_has_its_power_within_two_points_at_any_number_of_looks(
    level: float, looks: int
) -> None:
    units = units_needed(Baseline(1.0, 1.0), Design(HALVES, level), 0.035, is_sequential=True)
    assert units is not None

    assert abs(crossings(level, 0.035, units, looks, 20_000) - 0.8) < 0.02


def test_reading_at_any_time_costs_about_half_as_many_units_again() -> None:
    design = Design(HALVES, level_of(0.05, 2))
    fixed = units_needed(Baseline(0.1), design, 0.01)
    any_time = units_needed(Baseline(0.1), design, 0.01, is_sequential=True)
    assert fixed is not None
    assert any_time is not None
    assert 1.4 < any_time / fixed < 1.7


def test_a_guardrails_units_are_those_of_a_one_sided_test() -> None:
    units = margin_units(Baseline(5.0, 2.0), Design(HALVES, 0.025), 0.1)
    assert units == math.ceil((1.959964 + 0.841621) ** 2 * 4.0 * 4.0 / 0.1**2)


def test_more_arms_share_the_level() -> None:
    assert level_of(0.05, 2) == 0.025
    assert level_of(0.05, 6) == 0.005


def test_an_undetectable_effect_gives_none() -> None:
    assert units_needed(Baseline(1.0, 1.0), Design(HALVES, 0.05), 1e-9) is None
    assert detectable(Baseline(0.9), Design(HALVES, 0.05), 20) is None
    assert detectable(Baseline(0.9), Design(HALVES, 0.05), 0) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Baseline(0.0), "between 0 and 1"),
        (lambda: Baseline(1.0), "between 0 and 1"),
        (lambda: Baseline(math.nan), "finite"),
        (lambda: Baseline(1.0, 0.0), "above 0"),
        (lambda: Baseline(1.0, -1.0), "above 0"),
        (lambda: Baseline(1.0, math.inf), "above 0"),
        (lambda: Design(HALVES, 0.0), "error rate"),
        (lambda: Design(HALVES, 0.05, 1.0), "power"),
        (lambda: Design(HALVES, 0.05, 0.01), "power"),
        (lambda: Design((1.0, 0.0), 0.05), "share"),
        (lambda: units_needed(Baseline(0.1), Design(HALVES, 0.05), 0.0), "other than 0"),
        (lambda: units_needed(Baseline(0.1), Design(HALVES, 0.05), 0.95), "beyond 0 or 1"),
        (lambda: units_needed(Baseline(0.1), Design(HALVES, 0.05), -0.2), "beyond 0 or 1"),
        (lambda: margin_units(Baseline(0.1), Design(HALVES, 0.05), 0.0), "margin"),
    ],
)
def test_invalid_arguments_are_rejected(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
