"""The framing of requests: each way to frame a body, compared with h11, cut at every byte.

Request smuggling relies on two readers that frame the same bytes differently. After each request
comes another one, so that a wrong framing of the first one becomes visible.
"""

import pytest

from dataplane.config import Limits
from tests.dataplane.h11_oracle import ask_h11, ask_ours, check_against_h11
from tests.dataplane.wire import Wire, echo

NEXT = b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n"
LATE = (b"GET", b"/next", b"")


def post(headers, rest=b"", version=b"1.1"):
    head = b"POST /first HTTP/%b\r\nhost: x\r\n%b\r\n" % (version, headers)
    return head + rest + NEXT


def chunked(rest, headers=b""):
    return post(b"transfer-encoding: chunked\r\n" + headers, rest)


# Requests that both accept, and the body of the first one.
TAKEN = {
    "a length": (post(b"content-length: 3\r\n", b"abc"), b"abc"),
    "no length": (post(b""), b""),
    "a length with nought before it": (post(b"content-length: 003\r\n", b"abc"), b"abc"),
    "a length between blanks": (post(b"content-length:  3 \t\r\n", b"abc"), b"abc"),
    "a name in capitals": (post(b"CONTENT-LENGTH: 3\r\n", b"abc"), b"abc"),
    "a chunk": (chunked(b"3\r\nabc\r\n0\r\n\r\n"), b"abc"),
    "many chunks": (chunked(b"1\r\na\r\n2\r\nbc\r\n1\r\nd\r\n0\r\n\r\n"), b"abcd"),
    "a chunk that looks like an end": (chunked(b"5\r\n0\r\n\r\n\r\n0\r\n\r\n"), b"0\r\n\r\n"),
    "a chunk in hexadecimal": (chunked(b"A\r\n0123456789\r\n0\r\n\r\n"), b"0123456789"),
    "a chunk with nought before it": (chunked(b"0003\r\nabc\r\n00\r\n\r\n"), b"abc"),
    "an extension": (chunked(b"3;a=b\r\nabc\r\n0;c\r\n\r\n"), b"abc"),
    "a quoted extension": (chunked(b'3;a="b;c"\r\nabc\r\n0\r\n\r\n'), b"abc"),
    "a trailer": (chunked(b"3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"), b"abc"),
    "a coding in capitals": (
        post(b"Transfer-Encoding: CHUNKED\r\n", b"3\r\nabc\r\n0\r\n\r\n"), b"abc",
    ),
    "an expectation": (post(b"expect: 100-continue\r\ncontent-length: 3\r\n", b"abc"), b"abc"),
    "an expectation of chunks": (
        chunked(b"1\r\na\r\n0\r\n\r\n", b"expect: 100-continue\r\n"), b"a",
    ),
    "a request within a body": (
        post(b"content-length: %d\r\n" % len(NEXT), NEXT), NEXT,
    ),
}  # fmt: skip
# Requests that ours must refuse, or after which it must read nothing. h11 accepts some of them.
REFUSED = {
    "two lengths": post(b"content-length: 3\r\ncontent-length: 4\r\n", b"abcd"),
    "the same length twice": post(b"content-length: 3\r\ncontent-length: 3\r\n", b"abc"),
    "a list of lengths": post(b"content-length: 3, 3\r\n", b"abc"),
    "a length with a sign": post(b"content-length: +3\r\n", b"abc"),
    "a negative length": post(b"content-length: -3\r\n", b"abc"),
    "a hexadecimal length": post(b"content-length: 0x3\r\n", b"abc"),
    "an empty length": post(b"content-length: \r\n", b"abc"),
    "a length in two words": post(b"content-length: 3 4\r\n", b"abc"),
    "a length with a vertical tab": post(b"content-length: \x0b3\r\n", b"abc"),
    "a length beyond 64 bits": post(b"content-length: 18446744073709551619\r\n", b"abc"),
    "a length of a thousand digits": post(b"content-length: " + b"9" * 1_000 + b"\r\n", b"abc"),
    "a length and a coding": chunked(b"0\r\n\r\n", b"content-length: 3\r\n"),
    "a coding twice": chunked(b"0\r\n\r\n", b"transfer-encoding: chunked\r\n"),
    "a coding that is none": post(b"transfer-encoding: xchunked\r\n", b"0\r\n\r\n"),
    "a coding within another": post(b"transfer-encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "chunks within chunks": post(b"transfer-encoding: chunked, chunked\r\n", b"0\r\n\r\n"),
    "identity": post(b"transfer-encoding: identity\r\n", b"0\r\n\r\n"),
    "a coding behind a blank": post(b"transfer-encoding : chunked\r\n", b"0\r\n\r\n"),
    "a coding with a vertical tab": post(b"transfer-encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
    "a chunk beyond 64 bits": chunked(b"10000000000000003\r\nabc\r\n0\r\n\r\n"),
    "a chunk of a thousand digits": chunked(b"F" * 1_000 + b"\r\nabc\r\n0\r\n\r\n"),
    "a chunk without a length": chunked(b"\r\nabc\r\n0\r\n\r\n"),
    "a chunk with a sign": chunked(b"+3\r\nabc\r\n0\r\n\r\n"),
    "a hexadecimal chunk": chunked(b"0x3\r\nabc\r\n0\r\n\r\n"),
    "a chunk that is longer": chunked(b"2\r\nabc\r\n0\r\n\r\n"),
    "a chunk that is shorter": chunked(b"4\r\nabc\r\n0\r\n\r\n"),
    "a chunk behind a line feed": chunked(b"3\nabc\r\n0\r\n\r\n"),
    "a chunk before a line feed": chunked(b"3\r\nabc\n0\r\n\r\n"),
    "a line feed in an extension": chunked(b"3;a\nabc\r\n0\r\n\r\n"),
    "a trailer that has a length": chunked(b"0\r\ncontent-length: 30\r\n\r\n"),
    "a trailer that has a coding": chunked(b"0\r\ntransfer-encoding: chunked\r\n\r\n"),
    "a folded header": post(b"x: a\r\n b\r\ncontent-length: 3\r\n", b"abc"),
    "a folded coding": post(b"transfer-encoding:\r\n chunked\r\n", b"0\r\n\r\n"),
    "a first header that is folded": b"GET / HTTP/1.1\r\n x: a\r\nhost: x\r\n\r\n" + NEXT,
    "a header with a carriage return": post(b"x: a\rb\r\ncontent-length: 3\r\n", b"abc"),
    "a header with a NUL": post(b"x: a\0b\r\ncontent-length: 3\r\n", b"abc"),
    "a header without a name": post(b": a\r\ncontent-length: 3\r\n", b"abc"),
    "a header without a colon": post(b"content-length\r\n", b"abc"),
    "lines that end in line feeds": b"GET / HTTP/1.1\nhost: x\n\n" + NEXT,
    "one line that ends in a line feed": post(b"x: a\ncontent-length: 3\r\n", b"abc"),
    "chunks of an old client": post(
        b"connection: keep-alive\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n", b"1.0"
    ),
    "another expectation": post(b"expect: tea\r\ncontent-length: 3\r\n", b"abc"),
    "a version that is none": post(b"content-length: 3\r\n", b"abc", b"1.2"),
}
# Requests after which nothing more is read.
LAST = {
    "the last one": post(b"connection: close\r\ncontent-length: 3\r\n", b"abc"),
    "an old client": post(b"content-length: 3\r\n", b"abc", b"1.0"),
    "an upgrade": post(b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 3\r\n", b"abc"),
    "an upgrade in chunks": chunked(
        b"1\r\na\r\n2;x\r\nbc\r\n0\r\nt: u\r\n\r\n", b"connection: upgrade\r\nupgrade: h2c\r\n"
    ),
}


def at_every_byte(data):
    """Return our requests in `data`, after checking that any cut gives the same."""
    whole = ask_ours(data, None)
    for at in range(1, len(data)):
        wire = Wire(answer=echo)
        wire.feed(data[:at])
        if not wire.transport.closed:
            wire.feed(data[at:])
        requests = [(bytes(e.method), bytes(e.target), bytes(e.body)) for e in wire.exchanges]
        refused = any(status >= 400 for status in wire.statuses)
        assert (requests, refused) == whole, data[:at]
    return whole


@pytest.mark.parametrize("name", TAKEN)
def test_both_frame_in_the_same_way(name):
    data, body = TAKEN[name]
    expected = [(b"POST", b"/first", body), LATE], False
    assert at_every_byte(data) == ask_h11(data) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_ambiguous_framing_is_refused_and_ends_the_connection(name):
    assert at_every_byte(REFUSED[name]) == ([], True)
    check_against_h11(REFUSED[name], None)


@pytest.mark.parametrize("name", LAST)
def test_nothing_is_read_after_the_last_request(name):
    assert at_every_byte(LAST[name]) == ([(b"POST", b"/first", b"abc")], False)
    check_against_h11(LAST[name], None)


def test_a_pipeline_is_the_same_wherever_it_is_cut():
    data = b"".join(data for data, _ in list(TAKEN.values())[:12])
    requests, refused = at_every_byte(data)
    assert (requests, refused) == ask_h11(data)
    assert len(requests) == 24


def test_an_http_1_0_client_can_keep_the_connection():
    old = b"GET /%d HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"
    requests, refused = at_every_byte(old % 1 + old % 2)
    assert ([target for _, target, _ in requests], refused) == ([b"/1", b"/2"], False)


def test_a_length_over_the_limit_is_refused_before_its_body():
    wire = Wire(Limits(body_bytes_max=10))
    wire.feed(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9223372036854775807\r\n\r\n")
    assert wire.statuses == [413]
