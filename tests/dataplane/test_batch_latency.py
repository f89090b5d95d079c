"""The estimated time of a version, from recent observations, and whose fault silence is."""

import random

import pytest

from dataplane.batch_latency import STALE_S, Pace


class Version:
    """Computes batches one after the other, on the clock of the test."""

    def __init__(self, row_s=0.1, fixed_s=0.0, timeout_s=1.0, rows_max=32, lanes=1):
        self.pace = Pace(rows_max, timeout_s, lanes)
        self.row_s = row_s
        self.fixed_s = fixed_s
        self.timeout_s = timeout_s
        self.now = 100.0

    def compute(self, rows=1, took_s=None):
        """Send one batch and answer it."""
        sent_at = self.now
        cost_s = 0.0 if self.pace.is_trifling else self.pace.sent(rows, sent_at)
        self.now += self.fixed_s + self.row_s * rows if took_s is None else took_s
        self.pace.answered(rows, cost_s, sent_at, self.now)

    def grow(self, batches=12):
        """Send batches of the largest allowed size."""
        for _ in range(batches):
            self.compute(self.pace.rows_in(self.timeout_s, self.now))
        return self.pace

    def lose(self, rows=1, after_s=1.0):
        sent_at = self.now
        cost_s = self.pace.sent(rows, sent_at)
        self.now += after_s
        return self.pace.lost(rows, cost_s, sent_at, self.now)


def test_a_version_that_never_answered_gets_one_row():
    pace = Pace(32, 1.0)
    assert (pace.batch_rows, pace.places(4, 100.0), pace.is_trifling) == (1, 1, False)
    assert pace.done_in_s(10_000, 1, 100.0) == 0
    assert pace.drained_in_s(1_000) == 0
    assert pace.may_try(32, 0.001, 100.0)


@pytest.mark.parametrize(
    ("row_s", "fixed_s", "rows"),
    # A sixteenth of the timeout; more only if a large part of the time is the fixed part.
    [(0.1, 0.0, 1), (0.02, 0.0, 3), (0.005, 0.0, 12), (0.0001, 0.0, 32), (0.0005, 0.3, 32)],
)
def test_batches_take_a_small_part_of_the_timeout_unless_size_makes_rows_cheaper(
    row_s, fixed_s, rows
):
    pace = Version(row_s, fixed_s).grow(40)
    assert pace.batch_rows == pytest.approx(rows, abs=1, rel=0.2)


def test_batches_at_most_double():
    version = Version(row_s=0.0019)
    sizes = [1]
    while sizes[-1] < 32:
        version.compute(sizes[-1])
        sizes.append(version.pace.batch_rows)
    assert sizes == [1, 2, 4, 8, 16, 32]


def test_the_time_of_a_request_includes_all_work_before_it():
    version = Version(row_s=0.1)
    pace = version.grow()
    pace.sent(1, version.now)
    assert pace.done_in_s(2, 1, version.now) == pytest.approx(0.4, abs=0.07)
    assert pace.done_in_s(2, 1, version.now + 0.05) == pytest.approx(0.35, abs=0.07)
    assert pace.drained_in_s(10) == pytest.approx(1.0)


def test_a_batch_is_sized_by_the_time_that_is_left():
    version = Version(row_s=0.002, fixed_s=0.3)
    pace = version.grow(80)
    assert pace.rows_in(1.0, version.now) == 32
    assert 1 <= pace.rows_in(0.34, version.now) < 20
    assert pace.rows_in(0.01, version.now) == 1


def test_varying_costs_need_a_margin():
    rng = random.Random(1)
    version, even = Version(), Version(row_s=0.11)
    for _ in range(100):
        version.compute(1, took_s=rng.choice((0.02, 0.2)))
        even.compute()
    assert version.pace.done_in_s(0, 1, version.now) > 0.19
    assert even.pace.done_in_s(0, 1, even.now) < 0.15


def test_answers_that_come_together_are_one_batch():
    version = Version(row_s=0.02)
    pace = version.grow()
    for _ in range(30):
        sent_at = version.now
        costs = [pace.sent(2, sent_at) for _ in range(2)]
        version.now += 0.08
        for cost_s in costs:
            pace.answered(2, cost_s, sent_at, version.now)
    assert pace.cost_s(1) == pytest.approx(0.02, rel=0.2)
    assert pace.done_in_s(0, 1, version.now) < 0.04


def test_one_pause_changes_little_and_a_second_one_restarts_the_estimate():
    version = Version(row_s=0.0019)
    pace = version.grow()
    version.compute(8, took_s=0.2)
    assert pace.cost_s(8) < 0.03
    version.compute(8, took_s=0.2)
    assert pace.cost_s(8) == pytest.approx(0.2, rel=0.1)


def test_the_pace_follows_a_version_that_gets_faster():
    version = Version(row_s=0.5)
    pace = version.grow()
    version.row_s = 0.01
    version.compute()
    assert pace.cost_s(1) == pytest.approx(0.01)


def test_a_late_batch_raises_the_estimate_and_the_next_is_smaller():
    version = Version(row_s=0.005)
    pace = version.grow()
    for _ in range(2):
        version.lose(12, after_s=0.9)
    assert pace.cost_s(12) > 0.9
    assert pace.batch_rows < 3
    assert pace.done_in_s(0, 12, version.now) > 0.9


def test_batches_that_had_little_time_do_not_make_a_quick_version_look_slow():
    version = Version(row_s=0.001)
    pace = version.grow()
    for _ in range(4):
        version.lose(1, after_s=0.25)
    assert pace.done_in_s(10, 1, version.now) < 0.5


def test_an_idle_version_is_tried_unless_it_is_hopeless():
    version = Version(row_s=0.4)
    pace = version.grow()
    assert pace.may_try(1, 0.45, version.now)
    assert not pace.may_try(1, 0.3, version.now)
    assert not pace.may_try(2, 0.45, version.now)
    # More than twice the observed size: unknown.
    assert pace.may_try(8, 0.45, version.now)
    assert pace.may_try(1, 0.3, version.now + STALE_S + 0.1)


def test_a_version_whose_rows_take_too_long_is_tried_as_often_as_it_could_answer():
    version = Version(row_s=1.5)
    pace = version.grow()
    pace.vanished(1, pace.sent(1, version.now))
    assert not pace.may_try(1, 1.0, version.now + 0.5)
    assert pace.may_try(1, 1.0, version.now + 1.0)
    assert not pace.may_try(1, 0.6, version.now + 1.0)


def test_slow_batches_are_queued_here_except_one():
    assert Version(row_s=0.1).grow().places(4, 0.0) == 2
    assert Version(row_s=0.0001).grow().places(4, 0.0) == 4


def test_one_batch_waits_at_a_version_whose_rows_differ():
    version = Version(row_s=0.01)
    pace = version.grow(40)
    for number in range(40):
        version.compute(3, took_s=0.03 * (2 / 11 if number % 2 else 20 / 11))
    assert pace.places(4, version.now) == 2


def test_each_endpoint_counts_as_one_more_that_computes():
    version = Version(row_s=0.1, lanes=3)
    pace = version.grow()
    assert pace.places(8, 0.0) == 4
    # The batch in flight is overdue: an endpoint hangs, and others may be free.
    assert pace.places(8, 1e6) == 8
    for _ in range(2):
        pace.sent(1, version.now)
    assert pace.done_in_s(0, 1, version.now) == pytest.approx(0.1, abs=0.07)


def test_an_endpoint_that_hangs_does_not_make_the_others_look_slow():
    version = Version(row_s=0.0001, lanes=2)
    pace = version.grow(60)
    for _ in range(8):
        # All clients wait for it, so that the other endpoint answers nothing meanwhile.
        assert pace.lost(1, 0.0, version.now, version.now + 1.0)
    assert pace.is_trifling
    assert pace.done_in_s(0, 32, version.now + 1.0) < 0.1


def test_trifling_batches_are_not_planned_and_the_quick_bound_is_an_upper_bound():
    version = Version(row_s=0.0001)
    pace = version.grow(60)
    assert (pace.is_trifling, pace.batch_rows) == (True, 32)
    for rows in range(1, 1_000):
        quick_s = pace.quick_s + rows * pace.row_bound_s
        assert quick_s >= pace.done_in_s(rows - 1, 1, version.now) - 1e-9


# --- fault ----------------------------------------------------------------------------------------


def test_a_quick_version_that_is_silent_is_at_fault():
    version = Version(row_s=0.0001)
    version.grow()
    assert version.lose(32, after_s=1.0)


def test_a_first_row_without_an_answer_is_the_versions_fault_and_a_large_first_batch_is_not():
    assert Version().lose(1)
    assert not Version().lose(32)


def test_a_late_batch_of_a_version_that_answers_is_no_fault():
    version = Version(row_s=0.1)
    version.grow()
    assert not version.lose(1, after_s=0.2)
    version.compute()
    assert not version.lose(1, after_s=1.0)


def test_silence_adds_up_over_batches_that_had_little_time():
    version = Version(row_s=0.02)
    version.grow()
    faults = [version.lose(1, after_s=0.1) for _ in range(8)]
    assert faults[0] is False
    assert faults[-3:] == [True] * 3
    version.compute()
    assert not version.lose(1, after_s=0.1)
