"""A mock transport, and an application that echoes the request."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from dataplane.config import Limits
from dataplane.exchange import Exchange
from dataplane.http_listener import Server
from dataplane.http_protocol import HttpConnection


class MockTransport:
    """Records what is written, whether it was closed, and whether it reads."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.aborted = False
        self.ended = False
        self.reading = True
        # The client's address.
        self.peer: tuple[str, int] | None = ("127.0.0.1", 50_000)

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        assert name == "peername"
        return self.peer

    def write(self, data: bytes) -> None:
        assert not self.closed, "nothing is written to a closed transport"
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = self.closed = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Wire:
    """One connection of a server whose application keeps every exchange."""

    def __init__(
        self,
        limits: Limits | None = None,
        answer: Callable[[Exchange], None] | None = None,
    ) -> None:
        self.exchanges: list[Exchange] = []
        # The callbacks of the event loop's next turn.
        self.soon: list[Callable[[], None]] = []
        self.answer = answer
        self.server = Server(self._take, limits or Limits(), self.soon.append)
        self.connection = HttpConnection(self.server)
        self.transport = MockTransport()
        self.connection.connection_made(self.transport)

    def _take(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        if self.answer is not None:
            self.answer(exchange)

    def feed(self, data: bytes, piece: int | None = None) -> None:
        """Deliver `data`, in pieces of `piece` bytes if set, each after the last was parsed."""
        size = piece or len(data) or 1
        for at in range(0, len(data), size):
            if not self.transport.closed:
                self.connection.data_received(data[at : at + size])
                self.turn()
                while self.soon and not self.transport.reading:
                    self.turn()

    def turn(self) -> None:
        """Run the callbacks of the event loop's next turn."""
        soon, self.soon[:] = self.soon.copy(), []
        for function in soon:
            function()

    @property
    def statuses(self) -> list[int]:
        """The statuses of all answers written so far."""
        return [
            int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.transport.written)
        ]

    @property
    def ended(self) -> bool:
        """Whether no further answer will come."""
        return self.transport.closed or self.transport.ended


class Answer:
    """One parsed answer."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = dict(line.split(": ", 1) for line in lines[1:])

    @property
    def state(self) -> str:
        """The cache state."""
        return self.headers["x-interlock-cache"]

    @property
    def json(self) -> Any:
        """The parsed body, None if it is not JSON."""
        return json.loads(self.body) if self.body[:1] == b"{" else None


def echo(exchange: Exchange) -> None:
    """Answer with method, target and body of the request."""
    parts = [exchange.method.decode(), exchange.target.decode("latin-1"), exchange.body.hex()]
    exchange.respond(200, json.dumps(parts).encode())


def request(target: str = "/", body: bytes = b"", headers: str = "", method: str = "POST") -> bytes:
    """Return the bytes of one plain request."""
    head = f"{method} {target} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body
