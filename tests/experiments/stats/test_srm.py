"""Sample ratio mismatch: mismatches are detected, healthy splits pass at any number of looks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from apps.experiments.stats.comparison import State
from apps.experiments.stats.srm import check_phases, check_sample_ratio, log_bayes_factor


@pytest.mark.parametrize(
    ("counts", "weights", "state"),
    [
        ((5000, 5000), (5000, 5000), State.OK),
        ((4000, 6000), (5000, 5000), State.SRM),
        ((9500, 500), (9500, 500), State.OK),
        ((9000, 1000), (9500, 500), State.SRM),
        ((0, 0), (5000, 5000), State.NOT_ENOUGH_DATA),
        ((70, 0), (10_000, 0), State.NOT_ENOUGH_DATA),
        ((5000, 5000, 0), (5000, 5000, 0), State.OK),
        ((5000, 5000, 7), (5000, 5000, 0), State.UNEXPECTED_UNITS),
        ((3300, 3350, 3350), (3334, 3333, 3333), State.OK),
        ((5 * 10**7 + 50_000, 5 * 10**7 - 50_000), (5000, 5000), State.SRM),
    ],
)
def test_splits_get_their_states(
    counts: tuple[int, ...], weights: tuple[int, ...], state: State
) -> None:
    assert check_sample_ratio(counts, weights).state is state


def test_at_one_look_chi_square_decides_as_well() -> None:
    counts, weights = (4820, 5180), (5000, 5000)

    assert check_sample_ratio(counts, weights).state is State.OK
    assert check_sample_ratio(counts, weights, is_one_look=True).state is State.SRM


def test_chi_square_agrees_with_scipy() -> None:
    counts, shares = np.array([480.0, 300.0, 220.0]), np.array([0.5, 0.3, 0.2])

    oracle = stats.chisquare(counts, 1000.0 * shares).pvalue
    p_value = check_sample_ratio([480, 300, 220], [5000, 3000, 2000]).p_value
    assert p_value == pytest.approx(oracle, rel=1e-9)


def test_each_phase_is_tested_against_its_own_weights() -> None:
    phases = [((900, 100), (0.9, 0.1)), ((500, 500), (0.5, 0.5))]

    ratio = check_phases(phases)

    assert ratio.state is State.OK
    assert ratio.expected == (1400.0, 600.0)
    assert check_phases([((900, 100), (0.5, 0.5))]).state is State.SRM


def test_chi_squares_of_phases_add_up() -> None:
    phases = [((480, 520), (0.5, 0.5)), ((330, 270), (0.5, 0.5))]
    statistic = 2 * 20**2 / 500 + 2 * 30**2 / 300

    assert check_phases(phases).p_value == pytest.approx(stats.chi2.sf(statistic, 2), rel=1e-9)


def test_the_bayes_factor_averages_to_one_under_the_configured_shares() -> None:
    n, shares = 60, np.array([0.3, 0.7])
    factors = [
        np.exp(log_bayes_factor(np.array([k, n - k], dtype=float), shares)) for k in range(n + 1)
    ]

    assert stats.binom.pmf(np.arange(n + 1), n, 0.3) @ factors == pytest.approx(1.0)


def test_a_healthy_split_rarely_fails_at_any_of_many_looks() -> None:
    rng = np.random.default_rng(4)
    counts = np.cumsum(rng.binomial(200, 0.5, (200, 60)), axis=-1)
    doubted = [
        any(
            check_sample_ratio((int(a), 200 * (look + 1) - int(a)), (5000, 5000)).state is State.SRM
            for look, a in enumerate(run)
        )
        for run in counts
    ]

    assert np.mean(doubted) <= 0.02


@pytest.mark.parametrize(
    ("counts", "weights"), [((1, 2), (5000,)), ((-1, 2), (1, 1)), ((1, 2), (0, 0))]
)
def test_invalid_counts_and_weights_are_rejected(
    counts: tuple[int, ...], weights: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError):
        check_sample_ratio(counts, weights)
