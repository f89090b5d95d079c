"""Receivers of notifications for tests: a real HTTP server and a mail server on loopback."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Received:
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class Endpoint:
    """Answers with `status` and `text`, and records the requests."""

    port: int = 0
    status: int = 200
    text: bytes = b"ok"
    extra: dict[str, str] = field(default_factory=dict)
    # Called before the response is sent: may kill the sender, or wait.
    before: Callable[[Received], None] = lambda received: None
    received: list[Received] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def ids(self) -> list[str]:
        return [one.id for one in self.received]


def _handler(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            received = Received(self.path, headers, body)
            endpoint.received.append(received)
            endpoint.before(received)
            try:
                self.send_response(endpoint.status)
                for name, value in endpoint.extra.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(endpoint.text)))
                self.end_headers()
                self.wfile.write(endpoint.text)
            except OSError:
                # The sender is gone, or stopped reading a long response.
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def listening(port: int = 0) -> Iterator[Endpoint]:
    endpoint = Endpoint()
    with ThreadingHTTPServer(("127.0.0.1", port), _handler(endpoint)) as server:
        endpoint.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()


def verified(received: Received, secret: str) -> Any:
    """Verify a webhook as a receiver by the specification does; return its document."""
    sent_at = int(received.headers["webhook-timestamp"])
    assert abs(time.time() - sent_at) < 300
    key = base64.b64decode(secret[len("whsec_") :], validate=True)
    text = f"{received.headers['webhook-id']}.{sent_at}.".encode() + received.body
    expected = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    signatures = received.headers["webhook-signature"].split(" ")
    assert any(
        version == "v1" and hmac.compare_digest(signature, expected)
        for version, _, signature in (one.partition(",") for one in signatures)
    )
    return received.document


@dataclass
class Mailbox:
    port: int = 0
    # The server's response to RCPT.
    recipient_answer: bytes = b"250 ok\r\n"
    mails: list[str] = field(default_factory=list)


@contextmanager
def mail_server() -> Iterator[Mailbox]:
    """A minimal SMTP server."""
    box = Mailbox()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 test\r\n")
            while line := self.rfile.readline():
                match line.split()[0].upper():
                    case b"RCPT":
                        self.wfile.write(box.recipient_answer)
                    case b"DATA":
                        self.wfile.write(b"354 go on\r\n")
                        box.mails.append(self.read_mail())
                        self.wfile.write(b"250 ok\r\n")
                    case b"QUIT":
                        self.wfile.write(b"221 bye\r\n")
                        return
                    case _:
                        self.wfile.write(b"250 ok\r\n")

        def read_mail(self) -> str:
            lines = iter(self.rfile.readline, b".\r\n")
            return b"".join(lines).decode()

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        box.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield box
        finally:
            server.shutdown()
            thread.join()
