"""Quantiles of any values, with ties and gaps."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from apps.experiments.stats.comparison import Difference, State, UpliftState, read_fixed
from apps.experiments.stats.quantiles import (
    QuantileRegion,
    deviance,
    order_statistics_of,
    ranks_of,
    value_rank,
)
from apps.experiments.stats.sequential import read_sequential

Floats = NDArray[np.float64]
FEW = st.lists(st.integers(-3, 6), min_size=2, max_size=25)
FAR = 1e6
QUANTILES = st.sampled_from([0.1, 0.25, 0.5, 0.9])


def region(control: Floats, treatment: Floats, quantile: float) -> QuantileRegion:
    arms = [order_statistics_of(np.sort(values), quantile) for values in (control, treatment)]
    return QuantileRegion(arms[0], arms[1], quantile)


def of(quantiles: QuantileRegion) -> Difference:
    values = quantiles.control.value, quantiles.treatment.value
    return Difference(
        State.OK, "", "order-statistics", *values, *quantiles.noise(), region=quantiles
    )


def badness(values: Floats, point: float, quantile: float) -> float:
    """Return the deviance of the best count that a point may have, by definition."""
    below, upto = (values < point).sum(), (values <= point).sum()
    nearest = np.clip(len(values) * quantile, below, upto)
    return float(deviance(np.array(nearest, dtype=float), len(values), quantile))


@given(FEW, FEW, QUANTILES, st.floats(0.1, 4.0))
def test_the_interval_is_the_range_of_all_pairs_of_points_that_fit(
    control: list[int], treatment: list[int], quantile: float, critical: float
) -> None:
    a, b = np.array(control, dtype=float), np.array(treatment, dtype=float)
    # There is a half-integer between any two values; FAR represents all points beyond the extremes.
    points = [-FAR, *np.arange(-3.0, 6.5, 0.5), FAR]
    pairs = [
        (badness(a, x, quantile) + badness(b, y, quantile), y - x)
        for x, y in product(points, points)
    ]
    assume(all(abs(each - critical**2) > 1e-9 for each, _ in pairs))
    fits = [difference for each, difference in pairs if each <= critical**2]

    low, high = region(a, b, quantile).limits(critical)

    assert low == (min(fits) if min(fits) > -FAR / 2 else -math.inf)
    assert high == (max(fits) if max(fits) < FAR / 2 else math.inf)


@given(FEW, FEW, QUANTILES)
def test_the_score_is_the_least_deviance_of_a_common_quantile(
    control: list[int], treatment: list[int], quantile: float
) -> None:
    a, b = np.array(control, dtype=float), np.array(treatment, dtype=float)
    least = min(
        badness(a, x, quantile) + badness(b, x, quantile) for x in np.arange(-3.5, 7.0, 0.5)
    )

    assert region(a, b, quantile).score ** 2 == pytest.approx(least, abs=1e-9)


@given(FEW, FEW, QUANTILES, st.floats(0.1, 4.0))
def test_the_interval_excludes_0_exactly_when_the_score_is_beyond_the_critical_value(
    control: list[int], treatment: list[int], quantile: float, critical: float
) -> None:
    quantiles = region(np.array(control, dtype=float), np.array(treatment, dtype=float), quantile)
    assume(abs(abs(quantiles.score) - critical) > 1e-9)

    low, high = quantiles.limits(critical)

    assert (low > 0.0 or high < 0.0) == (abs(quantiles.score) > critical)
    uplift = quantiles.uplift_limits(critical)
    if uplift is not None:
        assert (uplift[0] > 0.0 or uplift[1] < 0.0) == (abs(quantiles.score) > critical)


def test_for_smooth_values_the_interval_is_as_wide_as_that_of_the_standard_error() -> None:
    n = 40_000
    # Exactly the quantiles of two exponential distributions, whose medians' densities are known.
    shares = (np.arange(n) + 0.5) / n
    a, b = -np.log1p(-shares), -2.0 * np.log1p(-shares)

    low, high = region(a, b, 0.5).limits(1.96)

    error = math.sqrt(0.25 / n * (1.0 / 0.5**2 + 1.0 / 0.25**2))
    assert (high - low) / 2.0 == pytest.approx(1.96 * error, rel=0.05)
    assert (high + low) / 2.0 == pytest.approx(math.log(2.0), rel=0.02)


def test_the_ends_of_an_interval_are_differences_of_values() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.poisson(30.0, 900) / 4.0, rng.poisson(33.0, 700) / 4.0

    ends = region(a, b, 0.8).limits(2.24)

    assert all(end in set(np.subtract.outer(b, a).ravel().tolist()) for end in ends)


def test_many_values_are_compared_by_few_ranks() -> None:
    ranks = ranks_of(10**8, 0.9)

    assert ranks == tuple(sorted(set(ranks)))
    assert (ranks[0], ranks[-1]) == (1, 10**8)
    assert len(ranks) < 320
    assert value_rank(10**8, 0.9) in ranks
    assert ranks_of(20, 0.5) == tuple(range(1, 21))


def test_rounding_does_not_change_the_rank_of_a_quantile() -> None:
    assert [value_rank(30, 0.1), value_rank(10, 0.7), value_rank(7, 0.5)] == [3, 7, 4]


def test_an_unbounded_interval_gives_the_number_of_needed_units() -> None:
    rng = np.random.default_rng(2)
    difference = of(region(rng.random(1_000), rng.random(1_000) + 0.4, 0.99))

    reading = read_sequential(
        difference, n=2_000, alpha=0.025, planned_units=400_000, wait_reason=None
    )

    assert reading.state is State.NOT_ENOUGH_DATA
    assert reading.low is None
    assert reading.reason.startswith("each side of the quantile needs ")
    assert reading.reason.endswith(" units of each arm at this look (10.0 so far)")


def test_a_quantile_that_may_be_0_has_no_uplift() -> None:
    rng = np.random.default_rng(3)
    a, b = (np.where(rng.random(500) < 0.49, 0.0, rng.random(500)) for _ in range(2))

    reading = read_fixed(of(region(a, b, 0.5)), 0.05)

    assert reading.uplift_state is UpliftState.NOT_ESTIMABLE
    assert reading.low is not None


def test_a_negative_quantile_keeps_the_sign_of_the_uplift() -> None:
    rng = np.random.default_rng(4)
    a = rng.normal(-10.0, 1.0, 2_000)

    reading = read_fixed(of(region(a, a + 2.0, 0.5)), 0.05)

    assert reading.uplift_low is not None
    assert 0.15 < reading.uplift_low < 0.2 < (reading.uplift_high or 0.0) < 0.25


@pytest.mark.parametrize("quantile", [0.5, 0.9])
def test_ties_never_make_a_difference_likelier_than_untied_values(quantile: float) -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        a, b = rng.exponential(3.0, 300), rng.exponential(3.0, 200)
        fine = region(a, b, quantile)
        coarse = region(np.floor(a), np.floor(b), quantile)
        assert abs(coarse.score) <= abs(fine.score) + 1e-12
