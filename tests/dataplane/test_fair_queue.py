"""The order of the fair queue, and the bound that keeps the lowest class from starving."""

import random

import pytest

from dataplane.fair_queue import CLASSES, HIGH, LOW, NORMAL, WEIGHTS, FairQueue
from tests.dataplane.worlds import Waiter

ROW = [1.0, 2.0, 3.0, 4.0]
DELAY_S = 0.005


def put(queue, priority=NORMAL, rows=1, key=None, at=0.0, deadline=1e12):
    job = Waiter(*[ROW] * rows, priority=priority, key=key, deadline=deadline)
    job.submitted_at = at
    queue.put(job, key, rows)
    return job


def classes(batch):
    return [job.priority for job in batch.jobs]


def test_a_line_is_due_when_it_is_full_or_waited_long_enough():
    queue = FairQueue(4, DELAY_S)
    put(queue, at=1.0)
    put(queue, key="other", at=1.003)
    assert (queue.due_lines, queue.mark_due(1.0)) == (0, pytest.approx(DELAY_S))
    assert queue.mark_due(1.005) == pytest.approx(0.003)
    assert queue.due_lines == 1
    for _ in range(3):
        put(queue, key="other", at=1.006)
    assert queue.due_lines == 2


def test_a_batch_takes_what_fits_of_one_line_in_order():
    queue = FairQueue(4, DELAY_S)
    jobs = [put(queue, rows=rows, at=1.0) for rows in (2, 1, 2, 1)]
    put(queue, key="other", at=1.0)
    first = queue.take(1.001)
    assert (first.jobs, first.rows) == (jobs[:2], 3)
    queue.mark_due(2.0)
    assert queue.take(2.0).jobs == jobs[2:]


def test_late_jobs_are_returned_and_not_sent():
    queue = FairQueue(2, DELAY_S)
    late = put(queue, deadline=1.0)
    for priority in (NORMAL, LOW):
        put(queue, priority)
    batch = queue.take(2.0)
    assert (batch.late, classes(batch), batch.rows) == ([late], [NORMAL, LOW], 2)
    assert (queue.rows, queue.waiting, queue.due_lines) == (0, [0, 0, 0], 0)


def test_a_busy_version_is_shared_by_weight():
    queue = FairQueue(32, DELAY_S)
    for _ in range(2_100):
        for priority in CLASSES:
            put(queue, priority)
    sent = [priority for _ in range(50) for priority in classes(queue.take(0.0))]
    for priority in CLASSES:
        share = sent.count(priority) / len(sent)
        assert share == pytest.approx(WEIGHTS[priority] / sum(WEIGHTS), abs=0.005)


def test_a_low_request_waits_for_at_most_twenty_rows_per_own_row():
    queue = FairQueue(32, DELAY_S)
    for _ in range(600):
        for priority in CLASSES:
            put(queue, priority)
    gaps, gap = [], 0
    for _ in range(30):
        for priority in classes(queue.take(0.0)):
            gaps, gap = ([*gaps, gap], 0) if priority == LOW else (gaps, gap + 1)
    assert len(gaps) > 40
    assert max(gaps) <= 20


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_holds_for_all_keys_and_sizes(seed):
    rng = random.Random(seed)
    queue = FairQueue(8, DELAY_S)

    def fill(priority):
        put(queue, priority, rows=rng.randint(1, 8), key=rng.choice("abc"))

    for _ in range(30):
        for priority in CLASSES:
            fill(priority)
    others, most = 0, 0
    for _ in range(1_000):
        queue.mark_due(10.0)
        batch = queue.take(10.0)
        for job in batch.jobs:
            others = 0 if job.priority == LOW else others + job.request.rows
            most = max(most, others)
            fill(job.priority)
    assert most <= 20 * 8 + 2 * 8


def test_resting_has_no_benefit_and_no_cost():
    queue = FairQueue(4, DELAY_S)
    for _ in range(400):
        put(queue, HIGH)
    for _ in range(100):
        queue.take(0.0)
    for _ in range(40):
        put(queue, HIGH)
        put(queue, LOW)
    sent = [priority for _ in range(10) for priority in classes(queue.take(0.0))]
    assert LOW in sent[:4]
    assert sent.count(LOW) <= 4


def test_keys_of_a_class_take_turns():
    queue = FairQueue(2, DELAY_S)
    for key in "aaaaaabb":
        put(queue, key=key)
    assert [queue.take(0.0).jobs[0].request.key for _ in range(4)] == ["a", "b", "a", "a"]


def test_finished_keys_leave_nothing_behind():
    queue = FairQueue(2, DELAY_S)
    for i in range(100):
        put(queue, key=i)
        queue.mark_oldest_due()
        queue.take(0.0)
    assert len(queue._lines) == 0
    assert len(queue._spare) <= 4


def test_a_dropped_job_is_not_charged_and_leaves_nothing_behind():
    queue = FairQueue(4, DELAY_S)
    first, other = put(queue, HIGH), put(queue, LOW)
    queue.mark_oldest_due()
    assert queue.head() is first
    assert queue.drop(0.0) is first
    assert (queue.head(), queue.rows, queue.due_lines) == (other, 1, 1)
    assert queue.drop(0.0) is other
    assert (queue.rows, queue.waiting, queue.due_lines) == (0, [0, 0, 0], 0)
    assert queue._tags == [0.0, 0.0, 0.0]


def test_a_batch_may_be_smaller_than_a_full_one():
    queue = FairQueue(4, DELAY_S)
    jobs = [put(queue) for _ in range(3)]
    queue.mark_oldest_due()
    assert queue.take(0.0, 2).jobs == jobs[:2]
    assert queue.rows == 1
