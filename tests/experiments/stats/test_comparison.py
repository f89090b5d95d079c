"""Differences and their readings agree with scipy and with each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from apps.experiments.stats.comparison import (
    Difference,
    State,
    UpliftState,
    compare_means,
    compare_rates,
    fisher_p,
    read_fixed,
)
from apps.experiments.stats.moments import Moments

RATES = st.tuples(
    st.integers(2, 3000), st.floats(0.0, 1.0), st.integers(2, 3000), st.floats(0.0, 1.0)
)


@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.integers(2, 300), st.floats(0.1, 10.0))
def test_welch_agrees_with_scipy(seed: int, na: int, nb: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(5.0, 1.0, na), rng.normal(5.2, spread, nb)

    reading = read_fixed(compare_means(Moments.of(a), Moments.of(b)), 0.05)

    oracle = stats.ttest_ind(b, a, equal_var=False)
    bounds = oracle.confidence_interval(0.95)
    assert reading.p_value == pytest.approx(oracle.pvalue, rel=1e-6)
    assert reading.low == pytest.approx(bounds.low, rel=1e-6, abs=1e-9)
    assert reading.high == pytest.approx(bounds.high, rel=1e-6, abs=1e-9)


@given(RATES)
def test_fisher_agrees_with_scipy(counts: tuple[int, float, int, float]) -> None:
    na, pa, nb, pb = counts
    a, b = round(na * pa), round(nb * pb)

    oracle = stats.fisher_exact([[a, na - a], [b, nb - b]]).pvalue

    assert fisher_p(na, a, nb, b) == pytest.approx(oracle, rel=1e-6, abs=1e-290)


@given(RATES)
def test_pooled_z_is_the_square_root_of_chi_square(counts: tuple[int, float, int, float]) -> None:
    na, pa, nb, pb = counts
    a, b = round(na * pa), round(nb * pb)
    assume(min(a, na - a, b, nb - b) >= 10)

    reading = read_fixed(compare_rates(na, a, nb, b), 0.05)

    table = [[a, na - a], [b, nb - b]]
    oracle = stats.chi2_contingency(table, correction=False).pvalue
    assert reading.p_value == pytest.approx(max(oracle, 1e-300), rel=1e-6)


def test_an_arm_without_events_still_gets_a_verdict() -> None:
    difference = compare_rates(1000, 0, 1000, 12)
    reading = read_fixed(difference, 0.05)

    assert difference.test == "fisher-exact"
    assert reading.p_value == pytest.approx(0.0005, abs=0.00005)
    assert reading.is_significant
    assert reading.uplift_state is UpliftState.CONTROL_MEAN_ZERO


def test_a_tiny_p_is_not_printed_as_0() -> None:
    reading = read_fixed(compare_rates(10_000, 1000, 10_000, 1800), 0.05)
    beyond = read_fixed(compare_means(Moments(1000, 0.0, 1.0), Moments(1000, 9.0, 1.0)), 0.05)

    assert 0.0 < (reading.p_value or 0.0) < 1e-50
    assert beyond.p_value == 1e-300


@given(RATES, st.sampled_from([0.001, 0.025, 0.05, 0.2]))
def test_intervals_of_rates_never_contradict_p(
    counts: tuple[int, float, int, float], alpha: float
) -> None:
    na, pa, nb, pb = counts
    check_agreement(compare_rates(na, round(na * pa), nb, round(nb * pb)), alpha)


@given(
    st.integers(2, 10**8),
    st.integers(2, 10**8),
    st.floats(-1e6, 1e6),
    st.floats(-1e6, 1e6),
    st.floats(0.0, 1e9),
    st.floats(0.0, 1e9),
)
def test_intervals_of_means_never_contradict_p(
    na: int, nb: int, mean_a: float, mean_b: float, m2_a: float, m2_b: float
) -> None:
    check_agreement(compare_means(Moments(na, mean_a, m2_a), Moments(nb, mean_b, m2_b)), 0.05)


def check_agreement(difference: Difference, alpha: float) -> None:
    reading = read_fixed(difference, alpha)
    if reading.state is not State.OK:
        assert not reading.is_significant
        return
    assert reading.p_value is not None
    assert reading.low is not None
    assert reading.high is not None
    assert 0.0 < reading.p_value <= 1.0
    if abs(reading.p_value / alpha - 1.0) < 1e-6:
        return
    assert reading.is_significant == (reading.low > 0.0 or reading.high < 0.0)
    if reading.uplift_low is not None and reading.uplift_high is not None:
        assert math.isfinite(reading.uplift_low)
        slack = 1e-9 * max(1.0, abs(reading.uplift_high))
        if reading.is_significant:
            assert reading.uplift_low > -slack or reading.uplift_high < slack
        else:
            assert reading.uplift_low < slack
            assert reading.uplift_high > -slack


def test_fieller_is_not_estimable_where_control_may_be_0() -> None:
    reading = read_fixed(compare_means(Moments(50, 0.1, 50.0), Moments(50, 5.0, 50.0)), 0.05)

    assert reading.is_significant
    assert reading.uplift_state is UpliftState.NOT_ESTIMABLE
    assert reading.uplift_low is None


def test_a_negative_control_mean_keeps_the_sign_of_the_uplift() -> None:
    reading = read_fixed(compare_means(Moments(500, -10.0, 500.0), Moments(500, -8.0, 500.0)), 0.05)

    assert reading.uplift_low is not None
    assert 0.15 < reading.uplift_low < 0.2 < (reading.uplift_high or 0.0) < 0.25


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_units_are_not_enough(n: int) -> None:
    for difference in (compare_means(Moments(n), Moments(9, 1.0, 3.0)), compare_rates(9, 4, n, 0)):
        assert read_fixed(difference, 0.05).state is State.NOT_ENOUGH_DATA


@pytest.mark.parametrize(
    "difference",
    [
        compare_means(Moments(10, 3.0), Moments(10, 5.0)),
        compare_means(Moments(10**8, 1e9, 1e-7), Moments(10**8, 1e9 + 1e-7, 0.0)),
        compare_rates(50, 0, 60, 0),
        compare_rates(50, 50, 60, 60),
    ],
)
def test_arms_that_do_not_vary_get_no_p(difference: Difference) -> None:
    reading = read_fixed(difference, 0.05)

    assert reading.state is State.NO_VARIANCE
    assert reading.p_value is None
    assert not reading.is_significant


def test_a_difference_within_rounding_is_not_significant() -> None:
    difference = compare_means(Moments(10**8, 1e9, 1e-3), Moments(10**8, 1e9 + 2e-7, 1e-3))

    assert not read_fixed(difference, 0.05).is_significant


def test_one_arm_may_be_constant() -> None:
    reading = read_fixed(compare_means(Moments(40, 3.0), Moments(40, 3.1, 10.0)), 0.05)

    oracle = stats.t.sf(0.1 / math.sqrt(10.0 / 39 / 40), 39) * 2
    assert reading.p_value == pytest.approx(oracle, rel=1e-9)


def test_welch_intervals_have_their_nominal_coverage() -> None:
    rng = np.random.default_rng(3)
    runs, truth = 1500, 0.2
    a, b = rng.exponential(1.0, (runs, 60)), rng.exponential(1.0, (runs, 300)) + truth
    readings = [
        read_fixed(compare_means(Moments.of(x), Moments.of(y)), 0.05)
        for x, y in zip(a, b, strict=True)
    ]
    covered = [(r.low or 0.0) <= truth <= (r.high or 0.0) for r in readings]

    assert 0.93 < float(np.mean(covered)) < 0.965
