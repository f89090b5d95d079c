import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.routing import Batching
from dataplane.batching import Batcher, Overloaded, QueueFull, Unsent
from dataplane.fair_queue import ABANDONED, HIGH, LOW, NORMAL
from dataplane.triton import Fault, Reply, TritonError
from tests.dataplane.worlds import DEAD, HeldTriton, Waiter, known, model, rows_of, sums_reply

ROW = [1.0, 2.0, 3.0, 4.0]


def make(triton, in_flight_max=4, is_known=True, **changes):
    route = model(**changes)
    loop = asyncio.get_running_loop()
    address = ("127.0.0.1:1",)
    sizes = []
    batcher = Batcher(
        route, route.versions["1"], address, triton, loop, sizes.append, in_flight_max
    )
    batcher.sizes = sizes
    return known(batcher) if is_known else batcher


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_an_idle_version_gets_what_arrived_in_one_turn_at_once():
    triton = HeldTriton()
    batcher = make(triton)
    for _ in range(3):
        batcher.submit(Waiter(ROW))
    await turns()
    assert triton.batch_sizes() == [3]


async def test_each_request_gets_its_own_rows_back():
    batcher = make(HeldTriton(sums_reply))
    jobs = [Waiter(ROW, [0.0, 0.0, 0.0, i]) for i in range(2)]
    for job in jobs:
        batcher.submit(job)
    await turns()
    assert [job.sums for job in jobs] == [[10.0, 0.0], [10.0, 1.0]]


async def test_a_busy_version_gets_a_batch_when_it_is_full():
    triton = HeldTriton()
    batcher = make(triton)
    batcher.submit(Waiter(ROW))
    await turns()
    for _ in range(4):
        batcher.submit(Waiter(ROW))
    await turns()
    assert triton.batch_sizes() == [1, 4]


async def test_a_busy_version_gets_a_batch_when_its_oldest_request_waited_long_enough():
    triton = HeldTriton()
    batcher = make(triton, batching=Batching(max_batch_size=4, max_queue_delay_us=10_000))
    batcher.submit(Waiter(ROW))
    await turns()
    batcher.submit(Waiter(ROW))
    await turns()
    assert triton.batch_sizes() == [1]
    await asyncio.sleep(0.03)
    assert triton.batch_sizes() == [1, 1]


async def test_waiting_requests_are_sent_when_the_version_is_idle():
    triton = HeldTriton()
    batcher = make(triton, batching=Batching(max_batch_size=4, max_queue_delay_us=10_000_000))
    batcher.submit(Waiter(ROW))
    await turns()
    batcher.submit(Waiter(ROW))
    triton.finish(0)
    await turns()
    assert triton.batch_sizes() == [1, 1]


async def test_the_batches_in_flight_are_limited():
    triton = HeldTriton()
    batcher = make(triton, in_flight_max=2)
    for _ in range(12):
        batcher.submit(Waiter(ROW))
    await turns()
    assert (triton.batch_sizes(), batcher.waiting_rows) == ([4, 4], 4)
    triton.finish(0)
    assert triton.batch_sizes() == [4, 4, 4]


async def test_requests_of_several_rows_stay_whole():
    triton = HeldTriton()
    batcher = make(triton)
    for rows in (3, 3, 1):
        batcher.submit(Waiter(*[ROW] * rows))
    await turns()
    assert triton.batch_sizes() == [3, 4]


async def test_requests_with_different_keys_never_share_a_batch():
    triton = HeldTriton()
    batcher = make(triton)
    for key in ("a", "b", "a"):
        batcher.submit(Waiter(ROW, key=key))
    await asyncio.sleep(0.02)
    assert sorted(triton.batch_sizes()) == [1, 2]


async def test_a_bad_row_fails_alone():
    batcher = make(HeldTriton(sums_reply))
    good, bad, other = Waiter(ROW), Waiter([666.0, 0, 0, 0]), Waiter(ROW)
    for job in (good, bad, other):
        batcher.submit(job)
    await turns(8)
    assert (good.sums, other.sums) == ([10.0], [10.0])
    assert bad.error is not None
    assert bad.error.fault is Fault.FAILED
    assert (batcher.in_flight, batcher.waiting_rows) == (0, 0)


async def test_a_dead_version_is_not_tried_row_by_row():
    triton = HeldTriton(lambda request: DEAD)
    batcher = make(triton)
    jobs = [Waiter(ROW) for _ in range(3)]
    for job in jobs:
        batcher.submit(job)
    await turns(8)
    assert len(triton.calls) == 1
    assert all(job.error is DEAD for job in jobs)


async def test_a_full_queue_refuses_at_once():
    batcher = make(HeldTriton(), batching=Batching(max_batch_size=4, max_queue_size=2))
    batcher.submit(Waiter(ROW))
    batcher.submit(Waiter(ROW))
    with pytest.raises(QueueFull):
        batcher.submit(Waiter(ROW))


async def test_a_request_whose_deadline_passed_in_the_queue_is_not_sent():
    triton = HeldTriton()
    batcher = make(triton)
    late, fresh = Waiter(ROW, deadline=time.monotonic() - 1), Waiter(ROW)
    batcher.submit(late)
    batcher.submit(fresh)
    await turns()
    assert triton.batch_sizes() == [1]
    assert late.error is not None
    assert late.error.fault is Fault.TIMEOUT


async def test_a_hurried_request_is_sent_next_with_its_line():
    triton = HeldTriton()
    batcher = make(triton, batching=Batching(max_batch_size=4, max_queue_delay_us=10_000_000))
    batcher.submit(Waiter(ROW))
    await turns()
    urgent = Waiter(ROW, deadline=time.monotonic() + 0.1)
    urgent.is_urgent = True
    batcher.submit(Waiter(ROW))
    batcher.submit(urgent)
    assert triton.batch_sizes() == [1, 2]
    await asyncio.sleep(0.12)
    assert urgent.error is not None
    assert urgent.error.fault is Fault.TIMEOUT


async def test_many_hurried_requests_are_sent_in_full_batches_and_by_class():
    triton = HeldTriton()
    batcher = make(triton, in_flight_max=1)
    first, other = Waiter(ROW), Waiter(ROW, priority=HIGH)
    batcher.submit(first)
    await turns()
    for _ in range(12):
        job = Waiter(ROW)
        job.is_urgent = True
        batcher.submit(job)
    batcher.submit(other)
    for call in range(2):
        triton.finish(call)
    assert triton.batch_sizes() == [1, 4, 4]
    assert other.sums is not None


async def test_many_batches_that_cannot_be_sent_end_every_job():
    class Broken(HeldTriton):
        def post(self, *_):
            raise ValueError("no address")

    batcher = make(Broken(), batched=False, batching=Batching(max_queue_size=1_024))
    jobs = [Waiter(ROW) for _ in range(1_000)]
    batcher.in_flight = 4
    for job in jobs:
        batcher.submit(job)
    batcher.in_flight = 0
    batcher._send_ready()
    await turns(1_200)
    assert all(job.error is not None for job in jobs)
    assert (batcher.in_flight, batcher.waiting_rows) == (0, 0)


async def test_a_model_without_a_batch_dimension_gets_one_request_a_call():
    triton = HeldTriton()
    batcher = make(triton, batched=False)
    batcher.submit(Waiter(ROW))
    batcher.submit(Waiter(ROW))
    await turns()
    assert triton.batch_sizes() == [1, 1]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, None, b"nonsense"),
        Reply(200, None, b"{}"),
        Reply(200, 2, b'{"outputs":[]}'),
        TritonError(Fault.UNREACHABLE, "gone"),
    ],
)
async def test_an_invalid_reply_fails_the_request(reply):
    batcher = make(HeldTriton(lambda request: reply))
    job = Waiter(ROW)
    batcher.submit(job)
    await turns()
    assert job.error is not None
    assert batcher.sizes == [1]


# --- classes, deadlines, sheds -------------------------------------------------------------------


async def test_the_next_batch_of_a_busy_version_is_put_together_by_weight():
    triton = HeldTriton()
    batcher = make(triton, in_flight_max=1, batching=Batching(max_batch_size=21))
    for i in range(61):
        batcher.submit(Waiter([float(i), 0, 0, 0], priority=(HIGH, NORMAL, LOW)[i % 3]))
    batcher.submit(Waiter(ROW))
    triton.finish(0)
    _, rows = rows_of(triton.calls[1][0])
    sent = [int(row[0]) % 3 for row in rows]
    high, normal, low = (sent.count(priority) for priority in (HIGH, NORMAL, LOW))
    assert high > 2 * normal > 2 * low > 0


async def warm(took_s=0.0, **changes):
    """Return a batcher that has observed batches of a version that takes `took_s` per row."""
    triton = HeldTriton()
    batcher = make(triton, in_flight_max=1, is_known=False, **changes)
    for i in range(8):
        batcher.submit(Waiter(ROW))
        await turns()
        await asyncio.sleep(took_s)
        triton.finish(i)
    return batcher, triton


def due_in(seconds, **changes):
    return Waiter(ROW, deadline=time.monotonic() + seconds, **changes)


async def test_a_request_that_cannot_make_its_deadline_is_refused_at_once():
    batcher, triton = await warm(0.05)
    batcher.submit(due_in(0.2))
    await turns()
    batcher.submit(due_in(0.5))
    with pytest.raises(Overloaded):
        batcher.submit(due_in(0.06))
    assert (batcher.in_flight, batcher.waiting_rows, len(triton.calls)) == (1, 1, 9)


async def test_a_shed_says_when_the_queue_should_have_drained():
    batcher, _ = await warm(0.05, batching=Batching(max_batch_size=1, max_queue_size=64))
    for _ in range(65):
        batcher.submit(Waiter(ROW))
    with pytest.raises(QueueFull) as full:
        batcher.submit(Waiter(ROW))
    assert full.value.retry_after_s == 4


async def test_nothing_is_shed_without_an_estimate():
    batcher = make(HeldTriton(), in_flight_max=1, is_known=False)
    for _ in range(20):
        batcher.submit(due_in(0.001))
    assert batcher.waiting_rows == 19


async def test_a_high_request_does_not_count_the_low_ones_that_it_overtakes():
    batcher, _ = await warm(0.05, batching=Batching(max_batch_size=1))
    for _ in range(40):
        batcher.submit(Waiter(ROW, priority=LOW))
    batcher.submit(due_in(0.3, priority=HIGH))
    with pytest.raises(Overloaded):
        batcher.submit(due_in(0.3, priority=LOW))


async def test_an_impatient_request_takes_no_time_from_others():
    triton = HeldTriton()
    batcher = make(triton)
    impatient, patient = due_in(0.03), due_in(1.0)
    for job in (impatient, patient):
        batcher.submit(job)
    await asyncio.sleep(0.05)
    assert impatient.error is not None
    assert impatient.error.fault is Fault.TIMEOUT
    assert triton.timeouts[0] == pytest.approx(1.0, abs=0.02)
    triton.finish(0)
    assert patient.sums == [10.0]


async def test_the_remaining_time_is_passed_on_to_triton():
    triton = HeldTriton()
    batcher = make(triton)
    for seconds in (1.5, 0.4):
        batcher.submit(due_in(seconds))
        await turns()
        triton.finish(-1)
    timeouts = [rows_of(call)[0]["parameters"]["timeout"] for call, _ in triton.calls]
    assert timeouts == pytest.approx([1_500_000, 400_000], abs=20_000)


async def test_a_request_whose_client_hung_up_is_dropped_while_it_is_queued():
    triton = HeldTriton()
    batcher = make(triton)
    batcher.submit(Waiter(ROW))
    await turns()
    abandoned, stays = Waiter(ROW), Waiter(ROW)
    for job in (abandoned, stays):
        batcher.submit(job)
    abandoned.deadline = ABANDONED
    triton.finish(0)
    await turns()
    assert triton.batch_sizes() == [1, 1]
    assert isinstance(abandoned.error, Unsent)
    assert batcher.waiting_rows == 0


class Broken(Waiter):
    """A job whose callbacks raise, like one with a closed transport."""

    def answered(self, outputs, start, dispatched_at):
        raise RuntimeError("the transport is closed")

    def failed(self, error):
        raise RuntimeError("the transport is closed")


@pytest.mark.parametrize("result", [None, DEAD, Reply(500, None, b"{}")])
async def test_a_job_that_raises_affects_no_other(result):
    triton = HeldTriton()
    batcher = make(triton)
    good = Waiter(ROW)
    late = Broken(ROW)
    for job in (Broken(ROW), good, late):
        batcher.submit(job)
    late.deadline = 0.0
    await turns()
    triton.finish(0, result)
    for index in range(1, len(triton.calls)):
        triton.finish(index, result)
    assert (good.sums is None) == (result is not None)
    assert (batcher.in_flight, batcher.waiting_rows) == (0, 0)


async def test_a_call_that_cannot_be_sent_fails_its_batch_only():
    triton = HeldTriton(sums_reply)
    batcher = make(triton)
    post, triton.post = triton.post, lambda *call: 1 / 0
    failed = Waiter(ROW)
    batcher.submit(failed)
    await turns()
    triton.post = post
    good = Waiter(ROW)
    batcher.submit(good)
    await turns()
    assert failed.error is not None
    assert (good.sums, batcher.in_flight) == ([10.0], 0)


# --- any mix -------------------------------------------------------------------------------------

JOBS = st.tuples(
    st.sampled_from((HIGH, NORMAL, LOW)),
    st.sampled_from(("a", "b", "c")),
    st.integers(1, 4),
    st.sampled_from((0.0, 0.002, 5.0, 1e9)),
    st.booleans(),
)
ENDS = st.sampled_from(("answer", "answer", "poison", "dead", "refuse", "nonsense"))
BOOM = {
    "poison": Reply(500, None, b"{}"),
    "dead": DEAD,
    "refuse": Reply(400, None, b"{}"),
    "nonsense": Reply(200, 2, b'{"outputs":[]}'),
}
KEYS = {"a": 1.0, "b": 2.0, "c": 3.0}


async def play(steps, ends):
    """Submit jobs, let turns pass and end calls as in the script; return the jobs and all calls."""
    triton = HeldTriton()
    batcher = make(triton, in_flight_max=2)
    jobs, ended = [], 0
    for i, (priority, key, rows, left_s, urgent) in enumerate(steps):
        deadline = time.monotonic() + left_s
        job = Waiter(*[[KEYS[key]] * 4] * rows, deadline=deadline, key=key, priority=priority)
        job.is_urgent = urgent
        try:
            batcher.submit(job)
        except QueueFull:
            continue
        jobs.append(job)
        if i % 3 == 0:
            await asyncio.sleep(0)
        if ended < len(triton.calls) and i % 2:
            triton.finish(ended, BOOM.get(ends[ended % len(ends)]))
            ended += 1
    while batcher.waiting_rows or ended < len(triton.calls):
        await asyncio.sleep(0)
        if ended < len(triton.calls):
            triton.finish(ended, BOOM.get(ends[ended % len(ends)]))
            ended += 1
    return batcher, triton, jobs


@settings(deadline=None, max_examples=150)
@given(st.lists(JOBS, max_size=40), st.lists(ENDS, min_size=1, max_size=6))
def test_any_mix_ends_each_job_once_and_mixes_no_keys(steps, ends):
    batcher, triton, jobs = asyncio.run(play(steps, ends))
    # A waiter itself refuses a second end.
    assert all((job.sums is None) != (job.error is None) for job in jobs)
    for job in jobs:
        if job.sums is not None:
            assert job.sums == [4 * KEYS[job.request.key]] * job.request.rows
    for call, _ in triton.calls:
        rows = rows_of(call)[1]
        assert len(set(rows)) == 1
        assert len(rows) <= 4
    assert (batcher.in_flight, batcher.waiting_rows) == (0, 0)
    assert batcher._queue.waiting == [0, 0, 0]
