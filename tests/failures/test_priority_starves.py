"""Strict priorities starved the low class (triton #7512 #8870). Here classes share by weight."""

from __future__ import annotations

from dataplane.fair_queue import HIGH, LOW, WEIGHTS, FairQueue
from tests.dataplane.worlds import Waiter

ROW = [1.0, 2.0, 3.0, 4.0]
DELAY_S = 0.005


def put(queue, priority):
    job = Waiter(ROW, priority=priority, key=None, deadline=1e12)
    job.submitted_at = 0.0
    queue.put(job, None, 1)


def test_the_low_class_gets_its_share_while_the_high_one_never_stops():
    queue = FairQueue(8, DELAY_S)
    for _ in range(400):
        put(queue, HIGH)
        put(queue, LOW)
    waited, longest = 0, 0
    for _ in range(80):
        sent = [job.priority for job in queue.take(10.0).jobs]
        for priority in sent:
            waited = 0 if priority == LOW else waited + 1
            longest = max(longest, waited)
            put(queue, priority)
    # The weights allow 16 jobs of the high class per job of the low one, plus two batches.
    assert longest <= WEIGHTS[HIGH] // WEIGHTS[LOW] + 2 * 8
