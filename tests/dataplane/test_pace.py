"""When a request would be answered, by what was seen of late."""

import pytest

from dataplane.pace import SAMPLES_MIN, STALE_S, Pace


def seen(took_s=0.1, rows=32, batches=SAMPLES_MIN, places=4, now=10.0):
    pace = Pace(32, places)
    for _ in range(batches):
        pace.answered(rows, took_s, now, pressed=True)
    return pace


def test_a_cold_pace_knows_nothing():
    pace = seen(batches=SAMPLES_MIN - 1)
    assert pace.done_in_s(10_000, 0, 10.0) == 0
    assert (pace.batch_s, pace.row_s, pace.drained_in_s(1_000)) == (0, 0, 0)


def test_a_stale_pace_knows_nothing():
    assert seen(now=10.0).done_in_s(10_000, 0, 10.0 + STALE_S + 0.1) == 0


@pytest.mark.parametrize(
    ("rows_ahead", "places_free", "expected_s"),
    [(0, 4, 0.1), (31, 1, 0.1), (0, 0, 0.125), (32, 0, 0.15), (320, 0, 0.375), (64, 2, 0.125)],
)
def test_places_in_flight_share_the_time_of_the_version(rows_ahead, places_free, expected_s):
    assert seen().done_in_s(rows_ahead, places_free, 10.0) == pytest.approx(expected_s)


def test_the_quick_bound_is_never_below_the_answer():
    pace = seen(rows=7)
    for rows in range(1, 500):
        for free in range(4):
            quick = pace.batch_s + rows * pace.row_s
            assert quick >= pace.done_in_s(rows - 1, free, 10.0) - 1e-9


def test_batches_that_could_have_been_larger_say_nothing_of_how_large_batches_get():
    pace = Pace(32, 4)
    for _ in range(20):
        pace.answered(1, 0.1, 10.0, pressed=False)
    assert pace.row_s == pytest.approx(0.1 / 4 / 32)


def test_the_pace_follows_a_version_that_gets_faster():
    pace = seen(took_s=1.0)
    for _ in range(20):
        pace.answered(32, 0.01, 10.0, pressed=True)
    assert pace.done_in_s(0, 1, 10.0) < 0.03
