"""Shedding, client deadlines and clients that hang up: what is answered, and what it counts for."""

import asyncio
import socket
import struct

import pytest
import uvloop

from contract.routing import Batching
from dataplane.config import Limits
from dataplane.http_listener import Server
from dataplane.http_protocol import HttpConnection
from tests.dataplane.test_predict import ALL, BOOM, INFER, ROW, Plane
from tests.dataplane.wire import Wire, request
from tests.dataplane.worlds import body, known, sums_reply

SLOW_S = 1.0


def slow(plane, version):
    """Make `version` look as if its rows took a second, and as if it were busy."""
    live = plane.serving.model("sums")
    lane = plane.serving.lane(live, live.router.explicit(version))
    batcher = lane.runtime.batcher
    known(batcher, row_s=SLOW_S, rows=1)
    batcher.in_flight = 4
    return lane.runtime


async def test_a_shed_is_a_503_and_no_failure_of_the_version():
    plane = Plane()
    runtime = slow(plane, "1")
    answer = await plane.ask(headers="x-interlock-timeout-ms: 900\r\n")
    assert (answer.status, answer.json["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"] == "1"
    assert runtime.stats.predictions == {"shed": 1}
    assert plane.serving.admission.sheds == {"overloaded": 1}
    assert runtime.breaker.calm
    assert [w.requests for w in plane.windows().values()] == [0]


async def test_requests_shed_by_a_canary_go_to_stable_and_are_no_failure():
    plane = Plane(split=ALL)
    runtime = slow(plane, "2")
    answer = await plane.ask(headers="x-interlock-timeout-ms: 900\r\n")
    assert (answer.status, answer.headers["x-interlock-version"]) == (200, "1")
    assert answer.headers["x-interlock-fallback"] == "overloaded"
    assert (runtime.stats.predictions, runtime.breaker.calm) == ({"shed": 1}, True)
    assert [w.requests for w in plane.windows().values()] == [0]


async def test_requests_shed_by_a_canary_do_not_load_an_overloaded_stable():
    plane = Plane(split=ALL)
    for version in "12":
        slow(plane, version)
    answer = await plane.ask(headers="x-interlock-timeout-ms: 900\r\n")
    assert (answer.status, answer.json["code"]) == (503, "overloaded")
    assert plane.triton.calls == []


async def test_requests_shed_by_a_canary_fill_only_half_of_stables_queue():
    plane = Plane(None, split=ALL, batching=Batching(max_batch_size=4, max_queue_size=4))
    wires = [Wire(answer=plane.application) for _ in range(4)]
    wires[0].feed(request("/v2/models/sums/versions/1/infer", body(*[ROW] * 2)))
    for wire in wires[1:]:
        wire.feed(request(INFER, body(*[ROW] * 3)))
    assert [wire.statuses for wire in wires] == [[], [], [503], [503]]


async def test_an_impatient_client_is_no_failure():
    plane = Plane(None, split=ALL)
    wire = Wire(answer=plane.application)
    wire.feed(request(INFER, body(ROW), "x-interlock-timeout-ms: 30\r\n"))
    wire.feed(request(INFER, body(ROW)))
    await asyncio.sleep(0.08)
    assert wire.statuses == [504]
    live = plane.serving.model("sums")
    runtime = plane.serving.lane(live, live.router.decide("u")).runtime
    assert (runtime.stats.predictions, runtime.breaker.calm) == ({"expired": 1}, True)
    assert [w.requests for w in plane.windows().values()] == [0]


async def test_the_clients_timeout_limits_the_call_without_a_fallback():
    plane = Plane(split=ALL)
    for headers, expected in (("600", 0.6), ("5000", 1.5)):
        await plane.ask(headers=f"x-interlock-timeout-ms: {headers}\r\n")
        assert plane.triton.timeouts[-1] == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("value", ["0", "soon", "-5"])
async def test_a_malformed_timeout_is_refused(value):
    answer = await Plane().ask(headers=f"x-interlock-timeout-ms: {value}\r\n")
    assert (answer.status, answer.json["code"]) == (400, "wrong_timeout")


async def test_a_canary_that_fails_within_an_impatient_clients_timeout_is_charged():
    plane = Plane(lambda call: BOOM if b"/versions/2/" in call else sums_reply(call), split=ALL)
    answer = await plane.ask(headers="x-interlock-timeout-ms: 300\r\n")
    assert (answer.status, answer.headers["x-interlock-fallback"]) == (200, "failed")
    assert plane.windows()["canary"].errors == 1


# --- on real sockets -----------------------------------------------------------------------------


class Front:
    """The application of a plane behind a real listener."""

    def __init__(self, plane):
        self.plane = plane
        self.server = Server(plane.application, Limits())

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self.listener = await loop.create_server(
            lambda: HttpConnection(self.server), "127.0.0.1", 0
        )
        self.port = self.listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.abort()
        self.listener.close()
        await asyncio.sleep(0.01)

    async def send(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request(INFER, body(ROW)))
        await asyncio.sleep(0.02)
        return reader, writer


def reset(writer):
    """Hang up so that the other side notices at once."""
    option = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
    writer.transport.abort()


async def queued_then_gone(hang_up, after_s):
    """One client is being served, one waits and hangs up, one waits and stays."""
    plane = Plane(None, batching=Batching(max_batch_size=4, max_queue_delay_us=10_000_000))
    async with Front(plane) as front:
        served, goes, stays = [await front.send() for _ in range(3)]
        hang_up(goes[1])
        await asyncio.sleep(after_s)
        plane.triton.finish(0)
        await asyncio.sleep(0.02)
        sizes = plane.triton.batch_sizes()
        plane.triton.finish(1)
        lines = [await reader.readline() for reader, _ in (served, stays)]
        for _, writer in (served, stays):
            writer.close()
    live = plane.serving.model("sums")
    runtime = plane.serving.lane(live, live.router.decide(None)).runtime
    return sizes, lines, runtime


@pytest.mark.parametrize(
    ("hang_up", "after_s"), [(reset, 0.02), (asyncio.StreamWriter.close, 0.15)]
)
def test_a_client_that_hangs_up_in_the_queue_is_not_sent_and_affects_no_other(hang_up, after_s):
    sizes, lines, runtime = uvloop.run(queued_then_gone(hang_up, after_s))
    assert sizes == [1, 1]
    assert lines == [b"HTTP/1.1 200 OK\r\n"] * 2
    assert runtime.stats.predictions == {"success": 2, "abandoned": 1}
    assert (runtime.batcher.in_flight, runtime.batcher.waiting_rows) == (0, 0)
    assert runtime.breaker.calm


async def answered_when_gone():
    """Answer a whole batch of clients that have hung up, in every stage of closing."""
    plane = Plane(None)
    async with Front(plane) as front:
        clients = [await front.send() for _ in range(6)]
        for _, writer in clients[::2]:
            writer.transport.abort()
        # The transports of the others are closed underneath their connections.
        for connection in list(front.server.connections)[::2]:
            if connection.transport is not None:
                connection.transport.close()
        index = 0
        while index < len(plane.triton.calls):
            plane.triton.finish(index)
            index += 1
            await asyncio.sleep(0.02)
        plane.triton.answer = sums_reply
        reader, writer = await front.send()
        line = await reader.readline()
        writer.close()
        for _, other in clients:
            other.close()
    live = plane.serving.model("sums")
    return line, plane.serving.lane(live, live.router.decide(None)).runtime.batcher


async def half_closed():
    plane = Plane(None)
    async with Front(plane) as front:
        reader, writer = await front.send()
        writer.write_eof()
        await asyncio.sleep(0.15)
        plane.triton.finish(0)
        line = await reader.readline()
        writer.close()
    return line


def test_a_client_that_only_half_closes_gets_its_answer():
    assert uvloop.run(half_closed()) == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run])
def test_writes_to_closed_transports_never_block_the_batcher(run):
    line, batcher = run(answered_when_gone())
    assert line == b"HTTP/1.1 200 OK\r\n"
    assert (batcher.in_flight, batcher.waiting_rows) == (0, 0)
