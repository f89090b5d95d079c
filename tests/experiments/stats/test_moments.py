"""Moments keep their precision where sums of squares cancel, and merging equals adding."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.experiments.stats.moments import Moments

VALUES = st.lists(st.floats(-1e6, 1e6), max_size=40)


def test_an_empty_sample_has_no_variance() -> None:
    assert Moments.of([]) == Moments()
    assert Moments.of([3.0]).variance is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_rejected(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Moments.of([1.0, value])
    with pytest.raises(ValueError, match="finite"):
        Moments().add(value)


@given(VALUES, VALUES)
def test_merging_two_samples_equals_one_sample_of_both(
    first: list[float], second: list[float]
) -> None:
    merged = Moments.of(first).merge(Moments.of(second))
    whole = Moments.of(first + second)

    assert merged.n == whole.n
    assert merged.mean == pytest.approx(whole.mean, rel=1e-9, abs=1e-6)
    assert merged.m2 == pytest.approx(whole.m2, rel=1e-9, abs=1e-3)


@given(VALUES)
def test_adding_one_by_one_equals_the_batch(values: list[float]) -> None:
    one_by_one = Moments()
    for value in values:
        one_by_one = one_by_one.add(value)

    batch = Moments.of(values)
    assert one_by_one.n == batch.n
    assert one_by_one.mean == pytest.approx(batch.mean, rel=1e-9, abs=1e-6)
    assert one_by_one.m2 == pytest.approx(batch.m2, rel=1e-9, abs=1e-3)


def test_it_agrees_with_numpy() -> None:
    values = np.random.default_rng(1).lognormal(size=1000)

    assert Moments.of(values).variance == pytest.approx(np.var(values, ddof=1), rel=1e-12)


def test_variance_survives_a_hundred_million_values_with_mean_a_billion() -> None:
    values = 1e9 + np.random.default_rng(2).standard_normal(10**5)
    block = Moments.of(values)
    whole = Moments()
    for _ in range(1000):
        whole = whole.merge(block)

    assert whole.n == 10**8
    assert whole.mean == pytest.approx(block.mean, rel=1e-14)
    assert whole.variance == pytest.approx(np.var(values - 1e9), rel=1e-6)


def test_adding_to_a_hundred_million_values_keeps_the_variance() -> None:
    moments = Moments(10**8, 1e9, 1e8)
    for step in range(1000):
        moments = moments.add(1e9 + (1.0 if step % 2 else -1.0))

    assert moments.variance == pytest.approx(1.0, rel=1e-6)
