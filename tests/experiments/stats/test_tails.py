"""Skewed differences and their equivalent normal deviations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from apps.experiments.stats.tails import normal_score, skewed_critical_values

SKEWNESSES = st.floats(-5.0, 5.0)


@given(st.floats(0.1, 8.0), SKEWNESSES)
def test_bounds_are_where_the_score_is_critical(critical: float, skewness: float) -> None:
    below, above = skewed_critical_values(critical, skewness)

    assert normal_score(above, skewness) == pytest.approx(critical, rel=1e-6)
    assert normal_score(-below, skewness) == pytest.approx(-critical, rel=1e-6)


@given(st.floats(-8.0, 8.0), SKEWNESSES)
def test_a_score_is_never_farther_out_and_keeps_its_side(z: float, skewness: float) -> None:
    score = normal_score(z, skewness)

    assert abs(score) <= abs(z) * (1 + 1e-9)
    assert score * z >= 0.0


@given(st.floats(0.0, 8.0))
def test_without_skewness_nothing_changes(z: float) -> None:
    assert normal_score(z, 0.0) == z
    assert skewed_critical_values(z, 0.0) == (z, z)


def test_small_skewness_is_cornish_and_fishers() -> None:
    assert normal_score(2.0, 1e-3) == pytest.approx(2.0 - 1e-3 * 4.0 / 6.0, abs=1e-6)


@pytest.mark.parametrize("skewness", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("z", [2.0, 3.0, 4.5])
def test_the_tail_is_that_of_the_gamma_distribution(z: float, skewness: float) -> None:
    shape = 4.0 / skewness**2
    exact = stats.gamma.sf(shape + z * math.sqrt(shape), shape)

    read = stats.norm.sf(normal_score(z, skewness))

    assert exact <= read <= 2.0 * exact


def test_an_unknown_tail_has_a_score_of_0() -> None:
    assert normal_score(9.0, math.inf) == 0.0
    assert skewed_critical_values(2.0, math.inf) == (2.0, math.inf)
    assert np.isfinite(normal_score(1e6, 1.0))
