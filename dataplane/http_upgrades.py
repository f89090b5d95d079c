"""Requests that ask for another protocol and have a body: httptools leaves that body unread.

Some clients ask for HTTP/2 with their first request, whatever it is; a server that does not speak
it answers as if they had not asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools

if TYPE_CHECKING:
    from dataplane.http_protocol import HttpConnection


def body_parser(
    connection: HttpConnection, headers: dict[bytes, bytes], method: bytes
) -> httptools.HttpRequestParser:
    """Return a parser that stands before the body of the request with these headers."""
    length = headers.get(b"content-length")
    framing = b"transfer-encoding: chunked" if length is None else b"content-length: " + length
    parser = httptools.HttpRequestParser(_BodyOf(connection))
    parser.feed_data(method + b" / HTTP/1.1\r\nconnection: close\r\n" + framing + b"\r\n\r\n")
    return parser


class _BodyOf:
    """What a parser calls that reads no more than the body of a request."""

    def __init__(self, connection: HttpConnection) -> None:
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete
