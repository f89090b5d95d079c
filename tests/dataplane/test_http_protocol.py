"""One client connection on a mock transport: from bytes to bytes."""

import asyncio

import pytest

from dataplane.config import Limits
from dataplane.http_protocol import HttpConnection
from tests.dataplane.wire import MockTransport, Wire, echo, request


def test_it_passes_on_complete_requests_however_they_are_cut():
    wire = Wire()
    wire.feed(request("/a?b", b"body", "X-Unit-Id: u1\r\n"), piece=1)
    (exchange,) = wire.exchanges
    assert (exchange.method, exchange.target, exchange.body) == (b"POST", b"/a?b", b"body")
    assert exchange.headers[b"x-unit-id"] == b"u1"


def test_it_writes_status_headers_and_body():
    wire = Wire()
    wire.feed(request())
    wire.exchanges[0].respond(200, b"{}", b"x: y\r\n")
    assert wire.transport.written == b"HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 2\r\n\r\n{}"
    assert not wire.ended


def test_it_keeps_the_connection_for_the_next_request():
    wire = Wire(answer=echo)
    wire.feed(request("/1"))
    wire.feed(request("/2"))
    assert wire.statuses == [200, 200]


def test_it_answers_pipelined_requests_in_their_order():
    wire = Wire()
    wire.feed(request("/1") + request("/2") + request("/3"))
    for number in (2, 1, 0):
        wire.exchanges[number].respond(200, b"%d" % number)
    bodies = [part[-1:] for part in wire.transport.written.split(b"HTTP/1.1 ")[1:]]
    assert bodies == [b"0", b"1", b"2"]


def test_it_takes_a_chunked_body():
    wire = Wire()
    wire.feed(
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\ntrailer: t\r\n\r\n"
    )
    assert wire.exchanges[0].body == b"abcde"
    assert b"trailer" not in wire.exchanges[0].headers


def test_it_sends_continue_to_a_client_that_waits_for_it():
    wire = Wire()
    head, body = request(body=b"ab", headers="Expect: 100-continue\r\n").split(b"\r\n\r\n")
    wire.feed(head + b"\r\n\r\n")
    assert wire.transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.feed(body)
    assert wire.exchanges[0].body == b"ab"


def test_it_sends_continue_only_after_pending_answers():
    wire = Wire()
    waiting = request(body=b"ab", headers="expect: 100-continue\r\n")
    wire.feed(request("/1") + waiting[:-2])
    assert wire.transport.written == b""
    wire.exchanges[0].respond(200, b"1")
    assert wire.transport.written.endswith(b"1HTTP/1.1 100 Continue\r\n\r\n")


def test_it_refuses_an_unknown_expectation():
    wire = Wire()
    wire.feed(request(body=b"ab", headers="expect: tea\r\n"))
    assert wire.statuses == [417]


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # No Host.
        b"GET /!HTTP/1.1\r\nhost: x\r\n\r\n",  # No version.
        b"GET / HTTP/2.0\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_it_answers_malformed_bytes_with_400_and_stops(data):
    wire = Wire(answer=echo)
    wire.feed(data)
    assert wire.statuses == [400]
    assert wire.ended


def test_it_refuses_an_unknown_transfer_coding():
    wire = Wire()
    wire.feed(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n")
    assert wire.statuses == [501]


def test_it_answers_the_requests_before_malformed_bytes_first():
    wire = Wire()
    wire.feed(request("/1") + b"nonsense\r\n\r\n")
    assert wire.transport.written == b""
    wire.exchanges[0].respond(200, b"1")
    assert wire.statuses == [200, 400]


@pytest.mark.parametrize("piece", [None, 7])
def test_it_refuses_a_head_that_is_too_large(piece):
    wire = Wire(Limits(head_bytes_max=500))
    wire.feed(request(headers="x: " + "y" * 600 + "\r\n"), piece)
    assert wire.statuses == [431]


def test_it_refuses_a_header_line_that_never_ends():
    wire = Wire(Limits(head_bytes_max=500))
    wire.feed(b"GET / HTTP/1.1\r\nhost: x\r\nx: ")
    wire.feed(b"y" * 2_000, piece=100)
    assert wire.statuses == [431]


def test_it_refuses_too_many_headers():
    wire = Wire(Limits(headers_max=5))
    wire.feed(request(headers="".join(f"x-{i}: y\r\n" for i in range(6))))
    assert wire.statuses == [431]


def test_it_refuses_a_body_by_its_announced_length():
    wire = Wire(Limits(body_bytes_max=10))
    wire.feed(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\n")
    assert wire.statuses == [413]


def test_it_refuses_a_chunked_body_when_it_grows_too_large():
    wire = Wire(Limits(body_bytes_max=10))
    wire.feed(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    wire.feed(b"8\r\n12345678\r\n" * 2)
    assert wire.statuses == [413]


def test_it_lingers_after_a_refusal_before_it_closes():
    wire = Wire(Limits(body_bytes_max=10))
    wire.feed(request(body=b"y" * 100))
    wire.feed(b"y" * 100)
    assert (wire.transport.ended, wire.transport.closed) == (True, False)
    for _ in range(4):
        wire.server.tick(b"")
    assert wire.transport.aborted


def test_it_stops_reading_from_a_client_that_does_not_read_its_answers():
    wire = Wire(Limits(write_timeout_s=2))
    wire.connection.pause_writing()
    assert not wire.transport.reading
    wire.connection.resume_writing()
    assert wire.transport.reading
    wire.connection.pause_writing()
    for _ in range(4):
        wire.server.tick(b"")
    assert wire.transport.aborted


def test_it_stops_reading_while_too_many_requests_are_unanswered():
    wire = Wire(Limits(pipeline_max=2))
    wire.feed(request("/1") + request("/2"))
    assert not wire.transport.reading
    wire.exchanges[0].respond(200, b"")
    assert wire.transport.reading


@pytest.mark.parametrize(
    ("sent", "status"), [(b"", []), (b"GET / HT", [408]), (request(body=b"ab")[:-1], [408])]
)
def test_it_ends_a_connection_that_is_too_slow(sent, status):
    limits = Limits(head_timeout_s=2, body_timeout_s=2, idle_timeout_s=2)
    wire = Wire(limits)
    wire.feed(sent)
    for _ in range(3):
        wire.server.tick(b"")
    assert wire.statuses == status
    assert wire.ended


def test_it_does_not_time_out_while_an_answer_is_pending():
    wire = Wire(Limits(idle_timeout_s=1))
    wire.feed(request())
    for _ in range(5):
        wire.server.tick(b"")
    assert not wire.ended


def test_it_closes_when_the_client_asks_for_it_and_reads_no_further():
    wire = Wire()
    wire.feed(request(headers="connection: close\r\n") + request("/late"))
    wire.exchanges[0].respond(200, b"")
    assert len(wire.exchanges) == 1
    assert b"connection: close\r\n" in wire.transport.written
    assert wire.transport.closed


def test_it_keeps_an_http_1_0_connection_only_on_request():
    wire = Wire(answer=echo)
    wire.feed(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    assert b"connection: keep-alive" in wire.transport.written
    wire.feed(b"GET / HTTP/1.0\r\n\r\n")
    assert wire.transport.closed


def test_it_answers_an_upgrade_as_plain_http_and_closes():
    wire = Wire(answer=echo)
    wire.feed(
        b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nPRI * HTTP/2"
    )
    assert wire.statuses == [200]
    assert wire.transport.closed


def test_it_sends_no_body_in_answer_to_head():
    wire = Wire()
    wire.feed(request(method="HEAD"))
    wire.exchanges[0].respond(200, b"body")
    assert wire.transport.written.endswith(b"content-length: 4\r\n\r\n")


def test_a_client_that_hung_up_affects_no_other():
    wire = Wire()
    wire.feed(request("/1") + request("/2"))
    wire.connection.connection_lost(None)
    wire.exchanges[1].respond(200, b"")
    wire.exchanges[0].respond(200, b"")
    assert wire.transport.written == b""


def test_a_half_closed_client_still_gets_its_answers():
    wire = Wire()
    wire.feed(request("/1"))
    assert wire.connection.eof_received() is True
    wire.exchanges[0].respond(200, b"")
    assert wire.statuses == [200]
    assert wire.transport.closed


def test_a_request_cut_off_by_its_client_is_malformed():
    wire = Wire()
    wire.feed(request(body=b"abc")[:-1])
    wire.connection.eof_received()
    assert wire.statuses == [400]


def test_a_second_answer_to_one_request_is_ignored():
    wire = Wire()
    wire.feed(request())
    wire.exchanges[0].respond(200, b"1")
    wire.exchanges[0].respond(500, b"2")
    assert wire.statuses == [200]


def test_stopping_closes_idle_connections_and_the_others_after_their_answers():
    idle, busy = Wire(), Wire()
    busy.feed(request())
    for wire in (idle, busy):
        wire.server.stop()
    assert (idle.transport.closed, busy.transport.closed) == (True, False)
    busy.exchanges[0].respond(200, b"")
    assert b"connection: close" in busy.transport.written
    assert busy.transport.closed


def test_it_refuses_connections_beyond_the_bound():
    wire = Wire()
    wire.server.connections_max = 1
    transport = MockTransport()
    HttpConnection(wire.server).connection_made(transport)
    assert transport.aborted


def test_it_sends_the_date_of_the_clock():
    wire = Wire(answer=echo)
    wire.server.tick(b"Tue, 24 Nov 2026 12:00:00 GMT")
    wire.feed(request())
    assert b"date: Tue, 24 Nov 2026 12:00:00 GMT\r\n" in wire.transport.written


async def test_the_server_reports_its_last_closed_connection():
    wire = Wire()
    emptied = asyncio.create_task(wire.server.emptied())
    await asyncio.sleep(0)
    assert not emptied.done()
    wire.connection.connection_lost(None)
    await emptied


def test_requests_in_one_piece_are_started_up_to_the_limit():
    wire = Wire(Limits(pipeline_max=2))
    wire.feed(b"".join(request(f"/{i}") for i in range(6)))
    assert len(wire.exchanges) == 2
    for i in range(6):
        assert len(wire.exchanges) == min(i + 2, 6)
        wire.exchanges[i].respond(200, b"")
    assert wire.statuses == [200] * 6
    assert wire.transport.reading


def test_held_requests_are_answered_before_malformed_bytes_after_them():
    wire = Wire(Limits(pipeline_max=1))
    wire.feed(request("/1") + request("/2") + b"nonsense\r\n\r\n")
    wire.exchanges[0].respond(200, b"")
    assert wire.statuses == [200]
    wire.exchanges[1].respond(200, b"")
    assert wire.statuses == [200, 200, 400]


def test_no_request_is_started_for_a_client_that_does_not_read_its_answers():
    wire = Wire(answer=echo)
    wire.connection.pause_writing()
    wire.feed(request("/1") + request("/2"))
    assert wire.exchanges == []
    wire.connection.resume_writing()
    assert wire.statuses == [200, 200]


@pytest.mark.parametrize(
    "name", ["host", "transfer-encoding", "content-encoding", "inference-header-content-length"]
)
def test_a_header_that_affects_framing_must_be_unique(name):
    wire = Wire()
    wire.feed(request(headers=f"{name}: x\r\n{name}: x\r\n"))
    assert wire.statuses == [400]


@pytest.mark.parametrize("part", [b"3;" + b"x" * 99, b"0\r\nx: " + b"y" * 99])
def test_a_trailer_or_a_chunk_head_that_never_ends_is_refused(part):
    wire = Wire(Limits(head_bytes_max=500))
    wire.feed(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + part)
    wire.feed(b"y" * 2_000, piece=100)
    assert wire.statuses == [431]


def test_connections_that_send_many_bytes_are_read_a_few_in_each_turn():
    wire = Wire(Limits(bodies_bytes_max=100_000_000))
    others = [HttpConnection(wire.server) for _ in range(5)]
    transports = [MockTransport() for _ in others]
    for connection, transport in zip(others, transports, strict=True):
        connection.connection_made(transport)
        connection.data_received(request(body=bytes(1_000_000))[:200_000])
    assert [transport.reading for transport in transports] == [False] * 5
    wire.feed(request())
    assert len(wire.exchanges) == 1
    assert [transport.reading for transport in transports] == [True] * 4 + [False]
    wire.turn()
    assert [transport.reading for transport in transports] == [True] * 5


CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
DENSE = {
    "chunks": CHUNKED + b"2\r\nab\r\n" * 20_000 + b"0\r\n\r\n",
    "requests": request() * 2_000,
    "trailers": CHUNKED + b"2\r\nab\r\n0\r\n" + b"a: b\r\n" * 2_000 + b"\r\n" + request() * 100,
    "upgrade": CHUNKED[:-2] + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n"
    + b"2\r\nab\r\n" * 9_000 + b"0\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", DENSE)
def test_a_long_read_is_parsed_a_slice_in_each_turn(name):
    whole, bytewise = Wire(answer=echo), Wire(answer=echo)
    bytewise.feed(DENSE[name], piece=997)
    whole.connection.data_received(DENSE[name])
    turns = 0
    while whole.soon:
        whole.turn()
        turns += 1
    assert turns >= len(DENSE[name]) // 16_384
    assert whole.transport.written == bytewise.transport.written
    assert [exchange.body for exchange in whole.exchanges] == [
        exchange.body for exchange in bytewise.exchanges
    ]
    assert whole.transport.reading or whole.ended


def test_others_are_answered_while_a_long_read_is_parsed():
    wire = Wire()
    other = HttpConnection(wire.server)
    other.connection_made(MockTransport())
    other.data_received(DENSE["chunks"])
    assert wire.server.held_bytes < 16_384
    wire.feed(request())
    assert [exchange.body for exchange in wire.exchanges] == [b""]


def test_a_long_read_waits_while_too_many_requests_are_unanswered():
    wire = Wire(Limits(pipeline_max=2))
    wire.feed(request() * 2_000)
    assert len(wire.exchanges) == 2
    assert not wire.soon
    for exchange in wire.exchanges:
        exchange.respond(200, b"")
        while wire.soon:
            wire.turn()
    assert len(wire.exchanges) == 2_000
    assert wire.transport.reading


def test_nothing_is_parsed_after_a_refusal():
    wire = Wire()
    wire.feed(b"nonsense\r\n\r\n" + request() * 2_000)
    assert (wire.statuses, wire.exchanges) == ([400], [])
    assert wire.transport.reading


def test_a_body_of_known_length_is_read_at_once():
    wire = Wire()
    wire.connection.data_received(request(body=bytes(200_000)))
    (exchange,) = wire.exchanges
    assert len(exchange.body) == 200_000


def test_a_small_body_is_read_at_once():
    wire = Wire()
    wire.connection.data_received(request(body=bytes(2_000)))
    assert wire.transport.reading


def test_bytes_after_a_refusal_are_read_in_turn():
    wire = Wire()
    wire.feed(b"nonsense\r\n\r\n")
    wire.connection.data_received(bytes(200_000))
    assert not wire.transport.reading
    wire.turn()
    assert wire.transport.reading


@pytest.mark.parametrize("name", ["connection", "proxy-connection"])
@pytest.mark.parametrize(
    ("version", "headers", "status"),
    [
        ("2.0", "host: x\r\n", 400),
        ("0.9", "host: x\r\n", 400),
        ("1.0", "host: x\r\ntransfer-encoding: chunked\r\n", 400),
        ("1.0", "", 200),
        ("1.1", "", 400),
    ],
)
def test_an_http_1_0_request_with_keep_alive_stays_http_1_0(name, version, headers, status):
    wire = Wire(answer=echo)
    head = f"POST / HTTP/{version}\r\n{headers}{name}: keep-alive\r\n\r\n"
    wire.feed(head.encode())
    assert wire.statuses == [status]


def test_a_stop_does_not_cut_off_requests_that_were_read_and_not_yet_parsed():
    wire = Wire()
    empty = len(request(headers="x: \r\n"))
    first = request(headers=f"x: {'y' * (16_384 - empty)}\r\n")
    wire.connection.data_received(first + request())
    (exchange,) = wire.exchanges
    exchange.respond(200, b"")
    wire.server.stop()
    assert not wire.transport.closed
    wire.turn()
    assert len(wire.exchanges) == 2
