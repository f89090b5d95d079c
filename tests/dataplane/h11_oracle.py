"""h11's view of the same bytes: the oracle of the differential tests."""

from __future__ import annotations

import h11
from hypothesis import strategies as st

from tests.dataplane.wire import Wire, echo

Parsed = tuple[bytes, bytes, bytes]

TOKENS = [
    b"GET", b"POST", b"HEAD", b" ", b"/", b"/v2/models/m/infer", b"?a=b", b" HTTP/1.1", b"\r\n",
    b"Host: x", b"content-length: 3", b"Content-Length: 0", b"transfer-encoding: chunked",
    b"connection: close", b"x-unit-id: u", b": ", b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n",
    b"\r\n\r\n", b"\x00", b"\xff", b"\t", b"expect: 100-continue", b"\n", b"\r", b"\r\n ", b";a=b",
    b"3;a=b\r\nabc\r\n", b"0\r\nx: y\r\n\r\n", b"Content-Length: 99999999999999999999",
    b"ffffffffffffffff\r\n", b"connection: keep-alive", b"connection: upgrade\r\nupgrade: h2c",
]  # fmt: skip


def ask_h11(data: bytes) -> tuple[list[Parsed], bool]:
    """Return the requests that h11 parses from `data`, and whether it reported an error."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    requests: list[Parsed] = []
    head: h11.Request | None = None
    body = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                requests.append((bytes(head.method), bytes(head.target), body))
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    return requests, False
                connection.start_next_cycle()
            else:
                return requests, False
    except h11.RemoteProtocolError:
        return requests, True


def ask_ours(data: bytes, piece: int | None) -> tuple[list[Parsed], bool]:
    """Return the requests that our protocol parses from `data`, and whether it refused bytes."""
    wire = Wire(answer=echo)
    wire.feed(data, piece)
    requests = [(bytes(e.method), bytes(e.target), bytes(e.body)) for e in wire.exchanges]
    return requests, any(status >= 400 for status in wire.statuses)


def check_against_h11(data: bytes, piece: int | None) -> None:
    """Assert that we never see a request or a body that h11 does not see.

    We may refuse more than h11 does (it forgives a bare line feed, we do not), but we may never
    accept other requests than it does: request smuggling relies on that.
    """
    theirs, _ = ask_h11(data)
    ours, _ = ask_ours(data, piece)
    assert ours == theirs[: len(ours)]


@st.composite
def chunks(draw: st.DrawFn, body: bytes) -> bytes:
    """Return `body` in chunks, with optional parts beside them."""
    pieces = []
    while body:
        size = draw(st.integers(1, len(body)))
        extension = draw(st.sampled_from([b"", b";a", b";a=b", b';a="b c"']))
        number = draw(st.sampled_from([b"%x", b"%X", b"00%x"])) % size
        pieces.append(b"%b%b\r\n%b\r\n" % (number, extension, body[:size]))
        body = body[size:]
    trailers = draw(st.sampled_from([b"", b"x-sum: 1\r\n", b"a: \r\nb: c\r\n"]))
    return b"".join(pieces) + b"0\r\n" + trailers + b"\r\n"


@st.composite
def plain_requests(draw: st.DrawFn) -> bytes:
    """Return one to three well-formed requests, one after the other."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        body = draw(st.binary(max_size=60))
        target = "/" + draw(st.text("abc/?=&%20-_.~", max_size=20))
        lines = [f"{draw(st.sampled_from(['GET', 'POST', 'PUT']))} {target} HTTP/1.1", "Host: x"]
        name = draw(st.text("abcXYZ-", min_size=1, max_size=8))
        lines.append(f"x{name}: {draw(st.text('abc 123;,', max_size=12))}")
        if draw(st.booleans()):
            lines.append(f"Content-Length: {len(body)}")
            payload = body
        else:
            lines.append("Transfer-Encoding: chunked")
            payload = draw(chunks(body))
        if draw(st.booleans()):
            lines.append("Expect: 100-continue")
        parts.append("\r\n".join(lines).encode() + b"\r\n\r\n" + payload)
    return b"".join(parts)


hostile_bytes = st.lists(st.sampled_from(TOKENS) | st.binary(max_size=4), max_size=30).map(b"".join)
