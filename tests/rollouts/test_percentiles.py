"""Percentile differences for people: exact to a bucket, with bounds that hold."""

from __future__ import annotations

import numpy as np
import pytest

from apps.rollouts.percentiles import percentile_differences, quantile_bounds_us
from contract.histogram import BUCKET_COUNT, Counts, index_of, upper_bound_us


def histogram_of(durations_us: np.ndarray) -> Counts:
    counts: Counts = {}
    for duration in durations_us.tolist():
        counts[index_of(duration)] = counts.get(index_of(duration), 0) + 1
    return counts


def test_a_slower_canary_has_its_difference_in_microseconds() -> None:
    rng = np.random.default_rng(61)
    canary, control = (
        histogram_of(scale * np.exp(0.5 * rng.standard_normal(4_000))) for scale in (20e3, 10e3)
    )

    median, p95, p99 = percentile_differences(canary, control)

    assert (median.permille, p95.permille, p99.permille) == (500, 950, 990)
    assert median.low_us is not None
    assert median.high_us is not None
    assert 7e3 < median.low_us < 10e3 < median.high_us < 14e3
    assert median.difference_us == pytest.approx(10e3, rel=0.15)


@pytest.mark.parametrize(("canary", "control"), [({}, {}), ({}, {90: 500}), ({90: 500}, {})])
def test_an_empty_side_has_no_difference(canary: Counts, control: Counts) -> None:
    for each in percentile_differences(canary, control):
        assert (each.difference_us, each.low_us, each.high_us) == (None, None, None)


def test_few_requests_have_no_upper_bound_of_a_high_percentile() -> None:
    median, _, p99 = percentile_differences({90: 50}, {90: 5_000})

    assert median.high_us is not None
    assert (p99.difference_us, p99.high_us) == (0.0, None)
    assert p99.low_us is not None


def test_durations_beyond_the_last_bucket_have_no_upper_bound() -> None:
    _, upper = quantile_bounds_us({BUCKET_COUNT - 1: 1_000}, 0.5, miss=0.05)

    assert upper is None


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("n", [200, 2_000])
def test_the_bounds_have_their_nominal_coverage(q: float, n: int) -> None:
    rng = np.random.default_rng(62)
    held = 0
    for _ in range(200):
        low, high = quantile_bounds_us(histogram_of(rng.uniform(0.0, 1e5, n)), q, miss=0.05)
        held += (low is None or low <= q * 1e5) and (high is None or q * 1e5 <= high)

    assert held / 200 >= 0.95 - 0.02


def test_a_billion_requests_leave_only_the_width_of_a_bucket() -> None:
    low, high = quantile_bounds_us({80: 6 * 10**8, 120: 4 * 10**8}, 0.5, miss=0.05)

    assert (low, high) == (upper_bound_us(79), upper_bound_us(80))
