"""Budgets of bytes that were received and not answered: per connection, and per process."""

import pytest

from dataplane.config import Limits
from dataplane.http_protocol import HttpConnection
from dataplane.request_bounds import SMALL_BYTES_MAX
from tests.dataplane.wire import MockTransport, Wire, request

LIMITS = Limits(connection_bytes_max=20_000, bodies_bytes_max=50_000)
BODY = b"x" * 15_000


def second(wire):
    """Return another connection of the same server, and its transport."""
    connection, transport = HttpConnection(wire.server), MockTransport()
    connection.connection_made(transport)
    return connection, transport


def test_small_bodies_count_in_no_budget():
    wire = Wire(LIMITS)
    wire.feed(request(body=b"x" * SMALL_BYTES_MAX))
    assert wire.server.held_bytes == 0


def test_a_connection_with_too_many_unanswered_bytes_is_not_read():
    wire = Wire(LIMITS)
    wire.feed(request(body=BODY))
    assert wire.transport.reading
    wire.feed(request(body=BODY))
    assert not wire.transport.reading
    wire.exchanges[0].respond(200, b"")
    assert wire.transport.reading
    assert wire.server.held_bytes == len(BODY)


def test_beyond_the_budget_of_the_process_only_the_new_body_is_refused():
    wire = Wire(LIMITS)
    others = [second(wire) for _ in range(3)]
    for connection, _ in others:
        connection.data_received(request(body=BODY))
    wire.feed(request(body=BODY))
    assert wire.statuses == [503]
    assert b"too_many_bytes" in wire.transport.written
    assert b"retry-after" in wire.transport.written
    assert wire.server.held_bytes == 3 * len(BODY)
    wire.exchanges[0].respond(200, b"")
    assert wire.server.held_bytes == 2 * len(BODY)


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_a_lost_connection_releases_its_bytes(part):
    wire = Wire(LIMITS)
    data = request(body=BODY)
    wire.feed(data[: int(len(data) * part)])
    assert wire.server.held_bytes > 0
    wire.connection.connection_lost(None)
    assert wire.server.held_bytes == 0


def test_a_body_refused_while_it_arrives_releases_its_bytes():
    wire = Wire(Limits(body_bytes_max=20_000))
    chunk = b"1388\r\n" + b"x" * 5_000 + b"\r\n"
    wire.feed(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + chunk * 5)
    assert wire.statuses == [413]
    assert wire.server.held_bytes == 0


def test_chunks_of_few_bytes_are_joined_as_they_arrive():
    wire = Wire()
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    wire.feed(head + b"".join(b"2\r\n%02d\r\n" % (i % 100) for i in range(20_000)))
    assert len(wire.connection._body) < 500
    wire.feed(b"0\r\n\r\n")
    assert wire.exchanges[0].body == b"".join(b"%02d" % (i % 100) for i in range(20_000))
    assert type(wire.exchanges[0].body) is bytes
