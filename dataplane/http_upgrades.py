"""Requests that ask for a protocol upgrade and have a body, which httptools does not read.

Some clients ask for HTTP/2 with their first request; a server that does not support it answers as
if they had not asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools

if TYPE_CHECKING:
    from dataplane.http_protocol import HttpConnection


def body_parser(
    connection: HttpConnection, headers: dict[bytes, bytes], method: bytes
) -> httptools.HttpRequestParser:
    """Return a parser that is positioned at the body of the request with these headers."""
    length = headers.get(b"content-length")
    framing = b"transfer-encoding: chunked" if length is None else b"content-length: " + length
    parser = httptools.HttpRequestParser(_BodyOf(connection))
    parser.feed_data(method + b" / HTTP/1.1\r\nconnection: close\r\n" + framing + b"\r\n\r\n")
    return parser


class _BodyOf:
    """Callbacks of a parser that reads only the body of a request."""

    def __init__(self, connection: HttpConnection) -> None:
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete
