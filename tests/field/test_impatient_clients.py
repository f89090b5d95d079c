"""A canary hangs, and the clients' timeout is less than half of the model's timeout."""

import asyncio

from contract.messages import Ends
from dataplane.triton import Fault, TritonError
from tests.dataplane.test_predict import ALL, INFER, ROW, Plane
from tests.dataplane.wire import Wire, request
from tests.dataplane.worlds import body, canary

IMPATIENT = "x-interlock-timeout-ms: 300\r\n"


async def hanging(plane, units):
    """Send a request per unit to a version that never responds; each call times out."""
    wires = [Wire(answer=plane.application) for _ in units]
    for wire, unit in zip(wires, units, strict=True):
        headers = IMPATIENT + (f"x-unit-id: {unit}\r\n" if unit else "")
        wire.feed(request(INFER, body(ROW), headers))
        await asyncio.sleep(0.002)
    ended = 0
    while ended < len(plane.triton.calls):
        plane.triton.finish(ended, TritonError(Fault.TIMEOUT, "no response before the deadline"))
        ended += 1
        await asyncio.sleep(0)
    return [wire.statuses for wire in wires]


async def test_requests_that_expire_for_impatient_clients_are_counted_as_unanswered():
    plane = Plane(None, split=ALL, timeout_ms=1_000)
    statuses = await hanging(plane, [None] * 5)
    assert statuses == [[504]] * 5
    window = plane.windows()["canary"]
    assert (window.requests, window.errors, window.assigned) == (0, 0, 5)
    assert (window.assigned_requests, window.ends) == (5, Ends(expired=5))
    assert window.unanswered == 5


async def test_a_unit_that_expires_repeatedly_is_one_unanswered_unit():
    plane = Plane(None, split=ALL, timeout_ms=1_000)
    await hanging(plane, ["a", "a", "b", None, "a"])
    window = plane.windows()["canary"]
    assert (window.assigned, window.unanswered) == (3, 3)
    assert (window.assigned_requests, window.ends) == (5, Ends(expired=5))


async def test_clusters_have_the_same_counts():
    plane = Plane(None, split=canary(10_000, exposures=True), timeout_ms=1_000)
    await hanging(plane, [f"u{n}" for n in range(20)])
    clusters = plane.windows()["canary"].clusters.values()
    assert sum(counts.unanswered for counts in clusters) == 20
    assert sum(counts.assigned for counts in clusters) == 20
    assert sum(counts.n for counts in clusters) == 0
    assert len(clusters) > 5
    assert len(plane.exposures) == 20
