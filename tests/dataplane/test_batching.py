import asyncio
import time

import pytest

from contract.routing import Batching
from dataplane.batching import Batcher, QueueFull
from dataplane.triton import Fault, Reply, TritonError
from tests.dataplane.worlds import DEAD, HeldTriton, Waiter, model, sums_reply

ROW = [1.0, 2.0, 3.0, 4.0]


def make(triton, in_flight_max=4, **changes):
    route = model(**changes)
    loop = asyncio.get_running_loop()
    address = ("127.0.0.1:1",)
    sizes = []
    batcher = Batcher(
        route, route.versions["1"], address, triton, loop, sizes.append, in_flight_max
    )
    batcher.sizes = sizes
    return batcher


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


async def test_what_waits_goes_when_the_version_is_idle_again():
    triton = HeldTriton()
    batcher = make(triton, batching=Batching(max_batch_size=4, max_queue_delay_us=10_000_000))
    batcher.submit(Waiter(ROW))
    await turns()
    batcher.submit(Waiter(ROW))
    triton.finish(0)
    await turns()
    assert triton.batch_sizes() == [1, 1]


async def test_no_more_batches_are_in_flight_than_may_be():
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


async def test_requests_with_different_keys_never_meet():
    triton = HeldTriton()
    batcher = make(triton)
    for key in ("a", "b", "a"):
        batcher.submit(Waiter(ROW, key=key))
    await asyncio.sleep(0.02)
    assert sorted(triton.batch_sizes()) == [1, 2]


async def test_a_poison_row_fails_alone():
    batcher = make(HeldTriton(sums_reply))
    good, bad, other = Waiter(ROW), Waiter([666.0, 0, 0, 0]), Waiter(ROW)
    for job in (good, bad, other):
        batcher.submit(job)
    await turns(8)
    assert (good.sums, other.sums) == ([10.0], [10.0])
    assert bad.error is not None
    assert bad.error.fault is Fault.FAILED
    assert (batcher.in_flight, batcher.waiting_rows) == (0, 0)


async def test_a_dead_version_is_not_asked_row_by_row():
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


async def test_a_hurried_request_travels_alone():
    triton = HeldTriton()
    batcher = make(triton)
    hurried = Waiter(ROW, deadline=time.monotonic() + 0.1)
    hurried.hurried = True
    batcher.submit(Waiter(ROW))
    batcher.submit(hurried)
    await turns()
    assert triton.batch_sizes()[0] == 1
    assert triton.timeouts[0] < 0.11


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
async def test_an_answer_that_makes_no_sense_fails_the_request(reply):
    batcher = make(HeldTriton(lambda request: reply))
    job = Waiter(ROW)
    batcher.submit(job)
    await turns()
    assert job.error is not None
    assert batcher.sizes == [1]
