"""How much more counts vary than independent ones: between clusters, and between intervals."""

from __future__ import annotations

import numpy as np
import pytest

from apps.rollouts.dispersion import Clusters, History, Pace, of_clusters, over_time, sums

RNG_SEED = 31


def clusters(clump: int, *, intervals: int = 60, runs: int = 40) -> Clusters:
    rng = np.random.default_rng(RNG_SEED)
    calls = np.full((runs, intervals, 32), 30)
    failing = rng.binomial(calls, 0.02)
    exposures = calls + (clump - 1) * failing
    return Clusters(
        sums(exposures.astype(float), axis=-2), sums((clump * failing).astype(float), axis=-2)
    )


def pace(rates: np.ndarray, n: float = 1_000.0) -> Pace:  # type: ignore[type-arg]
    rng = np.random.default_rng(RNG_SEED)
    return Pace(np.full(rates.shape, n), rng.binomial(int(n), rates).astype(float))


def wander(rng: np.random.Generator, intervals: int) -> np.ndarray:  # type: ignore[type-arg]
    state, path = rng.standard_normal(), []
    for _ in range(intervals):
        path.append(state)
        state = 0.9 * state + np.sqrt(0.19) * rng.standard_normal()
    return 0.01 * np.exp(0.7 * np.array(path) - 0.245)


def test_independent_units_vary_as_independent_units() -> None:
    dispersion = of_clusters(clusters(1), np.array([0, 30]), 60)
    assert (dispersion >= 1.0).all()
    assert dispersion.mean() < 1.06


def test_errors_in_clumps_of_five_vary_five_times_as_much() -> None:
    dispersion = of_clusters(clusters(5), np.array([0]), 60)
    assert dispersion.mean() == pytest.approx(4.8, abs=0.5)


def test_clusters_without_an_event_show_nothing() -> None:
    nothing = Clusters(np.full((11, 32), 5.0), np.zeros((11, 32)))
    assert of_clusters(nothing, np.array([0, 6]), 10).tolist() == [1.0, 1.0]


def test_a_steady_rate_has_no_dispersion_over_time() -> None:
    canary, control = pace(np.full((50, 200), 0.01), 50.0), pace(np.full((50, 200), 0.01))
    assert (over_time(canary, control) > 0.0).mean() < 0.1


def test_a_varying_control_has_a_dispersion_over_time() -> None:
    rng = np.random.default_rng(RNG_SEED)
    control = pace(np.stack([wander(rng, 300) for _ in range(20)]))
    canary = pace(np.full((20, 300), 0.01), 50.0)
    # var exp(0.7·z) = e^0.49 − 1 = 0.63 at once, multiplied by the duration of bad times.
    assert np.median(over_time(canary, control)) > 5.0


def test_shared_changes_are_no_dispersion() -> None:
    shared = np.tile(np.where(np.arange(300) < 150, 0.01, 0.10), (20, 1))
    alone = over_time(pace(np.full((20, 300), 0.01), 500.0), pace(shared, 500.0))
    together = over_time(pace(shared, 500.0), pace(shared, 500.0))
    assert np.median(together) < 0.05 * np.median(alone)


def test_history_counts_from_the_first_look_on() -> None:
    control = pace(np.full((1, 1), 0.01))
    before = History.of(pace(wander(np.random.default_rng(3), 600)[None]))
    assert over_time(control, control)[0] == 0.0
    assert over_time(control, control, before)[0] > 5.0


@pytest.mark.parametrize("long", [6, 60, 150])
def test_a_single_incident_does_not_count_as_dispersion(long: int) -> None:
    rates = np.full((1, 720), 0.01)
    rates[:, 400 : 400 + long] = 0.5
    control = pace(np.full((1, 1), 0.01))
    assert over_time(control, control, History.of(pace(rates)))[0] > 50.0
    assert over_time(control, control, History.usual(pace(rates)))[0] < 1.0


def test_rates_that_always_vary_keep_their_dispersion() -> None:
    rng = np.random.default_rng(RNG_SEED)
    rates = pace(np.stack([wander(rng, 720) for _ in range(20)]))
    control = pace(np.full((20, 1), 0.01))
    whole, usual = (
        over_time(control, control, each(rates)) for each in (History.of, History.usual)
    )
    assert np.median(usual) > 0.4 * np.median(whole)


def test_a_short_history_is_used_as_a_whole() -> None:
    few = pace(np.full((1, 59), 0.01))
    assert History.usual(few).intervals == 59
