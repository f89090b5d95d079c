from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.histogram import (
    BUCKET_COUNT,
    count_above,
    index_of,
    merge,
    quantile_index,
    quantile_us,
    total,
    upper_bound_us,
)

durations = st.floats(0.0, 400e6, allow_nan=False)


def histogram(values):
    return merge([{index_of(value): 1} for value in values])


@given(durations)
def test_a_duration_lies_within_the_bounds_of_its_bucket(duration):
    index = index_of(duration)
    assert 0 <= index < BUCKET_COUNT
    assert duration <= upper_bound_us(index)
    assert index == 0 or duration > upper_bound_us(index - 1)


@given(st.lists(durations, max_size=50), st.lists(durations, max_size=50))
def test_merging_is_counting_together(first, second):
    assert merge([histogram(first), histogram(second)]) == histogram(first + second)


@given(st.lists(durations, min_size=1, max_size=60), st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_exact_to_a_bucket(values, q):
    nearest_rank = sorted(values)[max(1, ceil(q * len(values) - 1e-9)) - 1]
    assert quantile_index(histogram(values), q) == index_of(nearest_rank)


def test_an_empty_histogram_has_no_quantile():
    assert (total({}), quantile_index({}, 0.5), quantile_us({}, 0.5)) == (0, None, None)


def test_a_quantile_in_the_last_bucket_stays_finite():
    assert quantile_us({BUCKET_COUNT - 1: 3}, 0.5) == pytest.approx(268.4e6, rel=0.01)


def test_exceedances_are_counted_above_a_bucket():
    assert count_above({3: 5, 4: 2, 9: 1}, 3) == 3
