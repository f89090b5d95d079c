import struct
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import spearmanr

from contract.routing import Tensor
from dataplane.batch_reply import Layout, Output
from dataplane.datatypes import DATATYPES
from dataplane.shadow import comparison
from dataplane.shadow.comparison import (
    ELEMENTS_MAX,
    Comparison,
    Difference,
    Tolerance,
    beyond_tolerance,
    rank_correlation,
)

NAN, INF = float("nan"), float("inf")
TOLERANCE = Tolerance(absolute=0.01, relative=0.1)
ACTIVATIONS = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 0.5, 1.0, 3.0])


def encode(datatype, rows):
    flat = [value for row in rows for value in row]
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(v)) + v for v in flat)
    if datatype == "BF16":
        return (np.array(flat, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return np.array(flat, DATATYPES[datatype].dtype).tobytes()


def output(datatype, *rows, inner=None, batched=True):
    """Return an output with these rows, each a list of elements."""
    inner = inner if inner is not None else [len(rows[0])]
    shape = [len(rows), *inner] if batched else inner
    tensor = Tensor(name="o", datatype=datatype, shape=(-1, *inner) if batched else tuple(inner))
    data = memoryview(encode(datatype, rows))
    return Output(Layout(tensor, shape, batched=batched), data)


def compare(live, shadow, rows, live_start=0, shadow_start=0, tolerance=TOLERANCE):
    total = Difference()
    for part in Comparison((live, live_start), (shadow, shadow_start), rows, tolerance).slices():
        total.add(part)
    return total


@pytest.mark.parametrize(
    ("live", "shadow", "outside", "largest"),
    [
        ([1.0], [1.0], False, 0.0),
        ([1.0], [1.1], False, 0.1),
        ([1.0], [1.2], True, 0.2),
        ([-1.0], [-1.2], True, 0.2),
        ([0.0], [0.01], False, 0.01),
        ([0.0], [0.02], True, 0.02),
        ([10.0, 1.0], [11.0, 1.5], True, 1.0),
        ([NAN], [NAN], False, 0.0),
        ([NAN], [1.0], True, 0.0),
        ([1.0], [NAN], True, 0.0),
        ([INF], [INF], False, 0.0),
        ([INF], [1.0], True, 0.0),
        ([1.0], [INF], True, 0.0),
        ([INF], [-INF], True, 0.0),
        ([1e308], [-1e308], True, np.finfo(float).max),
    ],
)
def test_numbers_are_within_the_tolerance_or_beyond(live, shadow, outside, largest):
    result = beyond_tolerance(np.array([live]), np.array([shadow]), TOLERANCE)
    assert result[0].tolist() == [outside]
    assert result[1] == pytest.approx(largest)


@pytest.mark.parametrize(
    ("live", "shadow", "expected"),
    [
        ([1.0, 2.0, 3.0], [10.0, 20.0, 30.0], 1.0),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], -1.0),
        ([1.0, 2.0], [0.0, INF], 1.0),
        ([1.0, 1.0, 2.0], [1.0, 2.0, 3.0], 3**0.5 / 2),
        ([1.0, 1.0], [1.0, 2.0], None),
        ([1.0, 2.0], [5.0, 5.0], None),
        ([1.0, NAN], [1.0, 2.0], None),
        ([1.0], [2.0], None),
        ([], [], None),
    ],
)
def test_ranks_correlate_or_do_not_exist(live, shadow, expected):
    correlation = rank_correlation(np.array(live), np.array(shadow))
    assert correlation == (None if expected is None else pytest.approx(expected))


@given(st.integers(2, 40).flatmap(lambda n: st.tuples(*[
    arrays.arrays(np.float64, n, elements=ACTIVATIONS | st.floats(-1e6, 1e6)) for _ in "ab"
])))  # fmt: skip
def test_rank_correlation_equals_scipys_with_ties(pair):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = spearmanr(*pair).statistic
    correlation = rank_correlation(*pair)
    if np.isnan(expected):
        assert correlation is None
    else:
        assert correlation == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("datatype", "live", "shadow"),
    [
        ("INT64", [[1], [2], [3]], [[1], [2], [4]]),
        ("UINT8", [[1, 0], [2, 0], [3, 0]], [[1, 0], [2, 0], [3, 1]]),
        ("BOOL", [[True], [False], [True]], [[True], [False], [False]]),
        ("BYTES", [[b"cat"], [b""], [b"dog"]], [[b"cat"], [b""], [b"do"]]),
    ],
)
def test_a_label_that_differs_is_a_flip_and_no_number(datatype, live, shadow):
    difference = compare([output(datatype, *live)], [output(datatype, *shadow)], 3)
    assert difference == Difference(rows=3, flips=1)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
def test_without_labels_the_class_is_the_largest_score(datatype):
    live = output(datatype, [0.5, 0.25], [0.5, 0.25])
    shadow = output(datatype, [0.25, 0.5], [0.5, 0.125])
    difference = compare([live], [shadow], 2)
    assert (difference.rows, difference.flips, difference.beyond_tolerance) == (2, 1, 2)
    assert difference.largest_difference == 0.25
    assert (difference.rank_correlation_sum, difference.ranked) == (0.0, 2)


def test_with_labels_the_scores_flip_nothing():
    labels = output("INT64", [1])
    difference = compare(
        [output("FP32", [0.0, 1.0]), labels], [output("FP32", [1.0, 0.0]), labels], 1
    )  # fmt: skip
    assert (difference.flips, difference.beyond_tolerance, difference.rank_correlation_sum) == (
        0,
        1,
        -1.0,
    )


def test_a_single_number_has_neither_class_nor_rank():
    difference = compare([output("FP32", [1.0])], [output("FP32", [2.0])], 1)
    assert (difference.flips, difference.beyond_tolerance, difference.ranked) == (0, 1, 0)


def test_rows_are_taken_from_the_requests_place_in_each_batch():
    live = output("INT64", [0], [7], [8])
    shadow = output("INT64", [7], [9], [0])
    assert compare([live], [shadow], 2, live_start=1).flips == 1


def test_a_row_counts_once_however_many_of_its_outputs_differ():
    live = [output("INT64", [1]), output("BOOL", [True]), output("FP32", [1.0]),
            output("FP64", [1.0])]  # fmt: skip
    shadow = [output("INT64", [2]), output("BOOL", [False]), output("FP32", [9.0]),
              output("FP64", [7.0])]  # fmt: skip
    difference = compare(live, shadow, 1)
    assert (difference.rows, difference.flips, difference.beyond_tolerance) == (1, 1, 1)
    assert difference.largest_difference == 8.0


@pytest.mark.parametrize(("datatype", "field"), [("FP32", "beyond_tolerance"), ("INT64", "flips")])
def test_an_output_of_another_shape_differs_in_every_row(datatype, field):
    live = output(datatype, [1, 2, 3], [1, 2, 3])
    difference = compare([live], [output(datatype, [1, 2], [1, 2])], 2)
    assert getattr(difference, field) == 2
    assert difference.ranked == 0


def test_a_model_without_a_batch_dimension_has_one_row():
    live = output("FP32", [1.0, 2.0, 3.0, 4.0], inner=[2, 2], batched=False)
    shadow = output("FP32", [1.0, 2.0, 4.0, 3.0], inner=[2, 2], batched=False)
    difference = compare([live], [shadow], 1)
    assert (difference.rows, difference.flips, difference.ranked) == (1, 1, 1)
    assert difference.rank_correlation_sum == pytest.approx(0.8)


def test_an_empty_row_agrees():
    assert compare([output("FP32", [], [])], [output("FP32", [], [])], 2) == Difference(rows=2)


@given(st.integers(1, 60), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_slices_add_up_to_the_whole(rows, width, seed):
    random = np.random.default_rng(seed)
    live, shadow = random.integers(0, 4, (2, rows, width)).astype(float)
    difference = compare([output("FP64", *live)], [output("FP64", *shadow)], rows)
    outside, largest = beyond_tolerance(live, shadow, TOLERANCE)
    assert difference.rows == rows
    assert difference.beyond_tolerance == outside.sum()
    assert difference.largest_difference == largest
    if width > 1:
        assert difference.flips == (live.argmax(axis=1) != shadow.argmax(axis=1)).sum()


def test_of_a_long_row_only_the_first_elements_are_compared():
    live = output("FP32", [0.0] * (ELEMENTS_MAX + 1))
    shadow = output("FP32", [0.0] * ELEMENTS_MAX + [5.0])
    difference = compare([live], [shadow], 1)
    assert (difference.rows, difference.beyond_tolerance, difference.largest_difference) == (
        1,
        0,
        0.0,
    )


def test_long_strings_are_left_out(monkeypatch):
    monkeypatch.setattr(comparison, "STRING_BYTES_MAX", 8)
    assert compare([output("BYTES", [b"longer"])], [output("BYTES", [b"other"])], 1).flips == 0
    assert compare([output("BYTES", [b"a"])], [output("BYTES", [b"b"])], 1).flips == 1


def test_the_work_of_a_slice_is_limited():
    wide = output("FP32", *[[0.0] * 500] * 9)
    parts = list(Comparison(([wide], 0), ([wide], 0), 9, TOLERANCE).slices())
    assert [part.rows for part in parts] == [2, 2, 2, 2, 1]
    narrow = output("FP32", *[[0.0, 1.0]] * 40)
    parts = list(Comparison(([narrow], 0), ([narrow], 0), 40, TOLERANCE).slices())
    assert [part.rows for part in parts] == [16, 16, 8]
