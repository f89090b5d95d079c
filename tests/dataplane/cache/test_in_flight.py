"""Identical requests in flight: which wait, which go on, and which fail alone."""

from __future__ import annotations

import asyncio

import pytest

from dataplane.cache import in_flight as module
from dataplane.triton import Fault, Reply, TritonError
from tests.dataplane.cache.worlds import ROW, Plane
from tests.dataplane.wire import Answer
from tests.dataplane.worlds import DEAD, body, canary, sums_reply, until

ALL = canary(10_000)
BOOM = Reply(500, None, b'{"error":"boom"}')
SHORT_TIMEOUT = "x-interlock-timeout-ms: 30\r\n"


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


def answers(wires):
    return [Answer(wire.transport.written) for wire in wires]


async def test_identical_requests_wait_for_the_first_answer():
    plane = Plane(None)
    wires = [plane.send() for _ in range(5)]
    await turns()
    assert plane.calls == 1
    plane.triton.finish(0)
    got = answers(wires)
    assert [answer.state for answer in got] == ["miss"] + ["l1"] * 4
    assert len({answer.body for answer in got}) == 1
    assert len(plane.cache.flights) == 0


async def test_each_waiter_gets_its_own_id_and_form():
    plane = Plane(None)
    payloads = [body(ROW, id=f"r{i}") for i in range(3)]
    wires = [plane.send(payload) for payload in payloads]
    wires.append(plane.send(body(ROW, parameters={"binary_data_output": True})))
    await turns()
    plane.triton.finish(0)
    got = answers(wires)
    assert [answer.json["id"] for answer in got[:3]] == ["r0", "r1", "r2"]
    assert got[3].headers["content-type"] == "application/octet-stream"
    assert plane.calls == 1


async def test_other_content_does_not_wait():
    plane = Plane(None)
    plane.send()
    plane.send(body([9, 9, 9, 9]))
    await turns()
    assert plane.triton.batch_sizes() == [2]


async def test_waiters_are_cache_hits_and_not_requests_of_the_version():
    plane = Plane(None)
    for i in range(4):
        plane.send(headers=f"x-unit-id: u{i}\r\n")
    await turns()
    plane.triton.finish(0)
    window = plane.windows()["stable"]
    assert (window.requests, window.units, window.cache_hits) == (1, 1, 3)


@pytest.mark.parametrize("result", [BOOM, DEAD, Reply(400, None, b'{"error":"no"}')])
async def test_when_the_first_fails_the_next_leads_and_the_others_get_its_answer(result):
    plane = Plane(None)
    wires = [plane.send() for _ in range(4)]
    await turns()
    plane.triton.finish(0, result)
    await turns()
    assert (plane.calls, plane.triton.batch_sizes()[1]) == (2, 1)
    plane.triton.finish(1)
    assert [answer.status == 200 for answer in answers(wires)] == [False, True, True, True]
    assert [answer.state for answer in answers(wires)[1:]] == ["miss", "l1", "l1"]


async def test_when_the_second_fails_as_well_each_goes_alone():
    plane = Plane(None)
    wires = [plane.send() for _ in range(6)]
    await turns()
    for call in (0, 1):
        plane.triton.finish(call, BOOM)
        await turns()
    assert plane.triton.batch_sizes() == [1, 1, 4]
    plane.triton.finish(2)
    assert [answer.status for answer in answers(wires)] == [500, 500, 200, 200, 200, 200]
    assert (len(plane.cache.flights), len(plane.cache.local)) == (0, 1)


async def test_a_request_that_always_fails_ends_for_all():
    plane = Plane(lambda call: BOOM)
    wires = [plane.send() for _ in range(8)]
    await turns(40)
    assert [answer.status for answer in answers(wires)] == [500] * 8
    assert len(plane.cache.flights) == 0


async def test_waiters_fall_back_each_by_itself_when_the_canary_fails():
    plane = Plane(lambda call: BOOM if b"/versions/2/" in call else sums_reply(call), split=ALL)
    wires = [plane.send() for _ in range(4)]
    await turns(40)
    got = answers(wires)
    assert [answer.status for answer in got] == [200] * 4
    assert {answer.headers["x-interlock-version"] for answer in got} == {"1"}
    assert all("x-interlock-fallback" in answer.headers for answer in got)
    assert len(plane.cache.local) == 0


async def test_a_waiter_that_cannot_wait_fails_alone_at_its_own_deadline():
    plane = Plane(None)
    first = plane.send()
    impatient, patient = plane.send(headers=SHORT_TIMEOUT), plane.send()
    await until(lambda: impatient.statuses == [504])
    assert (first.statuses, patient.statuses) == ([], [])
    plane.triton.finish(0)
    assert (first.statuses, patient.statuses) == ([200], [200])


async def test_a_first_whose_deadline_passes_fails_alone():
    plane = Plane(None)
    first = plane.send(headers=SHORT_TIMEOUT)
    patient = [plane.send() for _ in range(2)]
    await turns()
    plane.triton.finish(0, TritonError(Fault.TIMEOUT, "late"))
    await turns()
    assert first.statuses == [504]
    plane.triton.finish(1)
    assert [wire.statuses for wire in patient] == [[200], [200]]


async def test_no_request_joins_a_flight_after_its_deadline():
    plane = Plane(None, timeout_ms=20)
    plane.send()
    await asyncio.sleep(0.03)
    late = plane.send()
    await until(lambda: plane.calls == 2)
    plane.triton.finish(1)
    assert late.statuses == [200]
    plane.triton.finish(0)
    assert len(plane.cache.flights) == 0


async def test_beyond_the_bound_a_request_leads_a_flight_of_its_own(monkeypatch):
    monkeypatch.setattr(module, "WAITERS_MAX", 2)
    plane = Plane(None)
    wires = [plane.send() for _ in range(5)]
    await turns()
    assert plane.triton.batch_sizes() == [2]
    plane.triton.finish(0)
    assert [wire.statuses for wire in wires] == [[200]] * 5


async def test_a_first_whose_client_hangs_up_affects_no_other():
    plane = Plane(None)
    first, second = plane.send(), plane.send()
    await turns()
    first.connection.connection_lost(None)
    await turns()
    plane.triton.finish(0)
    assert second.statuses == [200]


async def test_a_waiter_that_hangs_up_affects_no_other():
    plane = Plane(None)
    wires = [plane.send() for _ in range(3)]
    await turns()
    wires[1].connection.connection_lost(None)
    plane.triton.finish(0)
    assert [wire.statuses for wire in wires] == [[200], [], [200]]


async def test_a_request_that_bypasses_the_cache_does_not_wait():
    plane = Plane(None)
    plane.send()
    plane.send(headers="cache-control: no-cache\r\n")
    plane.send(headers="cache-control: no-store\r\n")
    await turns()
    assert plane.triton.batch_sizes() == [3]


async def test_a_table_applied_meanwhile_does_not_split_a_flight():
    plane = Plane(None)
    first = plane.send()
    await turns()
    plane.apply(2, split=canary(0))
    second = plane.send(headers="x-unit-id: u1\r\n")
    await turns()
    plane.triton.finish(0)
    got = answers([first, second])
    assert [answer.headers["x-interlock-generation"] for answer in got] == ["1", "2"]
    assert plane.calls == 1


@pytest.mark.parametrize("cut", [0, 1])
async def test_an_answer_that_cannot_be_written_affects_no_other(cut):
    plane = Plane(None)
    wires = [plane.send() for _ in range(4)]
    await turns()
    wires[cut].transport.close()
    plane.triton.finish(0)
    assert [wire.statuses for wire in wires] == [[] if i == cut else [200] for i in range(4)]
    assert len(plane.cache.flights) == 0


async def test_a_refusal_that_cannot_be_written_affects_no_other():
    plane = Plane(None)
    wires = [plane.send() for _ in range(5)]
    await turns()
    plane.triton.finish(0, DEAD)
    await turns()
    wires[2].transport.close()
    plane.triton.finish(1, DEAD)
    assert plane.serving.trips
    assert [wire.statuses for wire in wires] == [[503], [503], [], [503], [503]]
    assert len(plane.cache.flights) == 0


async def test_a_waiter_does_not_report_to_the_breaker():
    plane = Plane(None, timeout_ms=60)
    plane.send()
    await turns()
    wires = [plane.send() for _ in range(4)]
    await until(lambda: all(wire.statuses == [504] for wire in wires))
    assert plane.serving.trips == ()
    assert plane.windows()["stable"].errors == 4
    plane.triton.finish(0)


async def test_a_waiter_does_not_release_the_trial_of_another():
    plane = Plane(None, timeout_ms=500)
    for i in range(2):
        plane.send(body([i, 0, 0, 0]))
        await turns()
        plane.triton.finish(i, DEAD)
    await asyncio.sleep(0.06)
    trial, impatient = plane.send(), plane.send(headers=SHORT_TIMEOUT)
    await until(lambda: impatient.statuses == [504])
    assert plane.send(body([9, 9, 9, 9])).statuses == [503]
    plane.triton.finish(2)
    assert trial.statuses == [200]
