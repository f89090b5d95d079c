"""Posts to an address that a person typed in: to a machine that may be reached, within bounds.

The name is looked up once, and the connection goes to an address that was checked. No redirect is
followed, no proxy is asked, the whole exchange has one deadline, and of the answer no more than
`ANSWER_BYTES_MAX` is read.
"""

from __future__ import annotations

import io
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from apps.lib.errors import Unavailable
from apps.notifications.addresses import is_reachable, why_refused

TIMEOUT_S = 5.0
ANSWER_BYTES_MAX = 1_024
RETRY_AFTER_S_MAX = 3_600


@dataclass(frozen=True)
class Answer:
    """`text` is the beginning of the body; `retry_after_s` is 0 when the answer named none."""

    status: int
    text: str
    retry_after_s: int = 0


def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    timeout_s: float = TIMEOUT_S,
    bytes_max: int = ANSWER_BYTES_MAX,
) -> Answer:
    """Return what the endpoint answered, whatever it was.

    Raises:
        Unavailable: it did not answer in time, or may not be reached; the message says why.
    """
    deadline = monotonic() + timeout_s
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    try:
        with _connect(host, port, parts.scheme == "https", deadline) as sock:
            return _exchange(sock, parts.netloc, path, headers, body, deadline, bytes_max)
    except TimeoutError as error:
        raise Unavailable(f"no answer within {timeout_s:g} s") from error
    except ssl.SSLError as error:
        raise Unavailable(f"TLS failed: {error}") from error
    except (OSError, HTTPException, ValueError) as error:
        told = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unavailable(f"no answer: {told}") from error


def _connect(host: str, port: int, is_tls: bool, deadline: float) -> socket.socket:
    """Return a connection to the first address of `host` that may be reached and answers."""
    private_allowed = settings.WEBHOOK_PRIVATE_ALLOWED
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    machines = list(dict.fromkeys(str(address[0]) for *_, address in found))
    reachable = [m for m in machines if is_reachable(m, private_allowed=private_allowed)]
    if not reachable:
        raise Unavailable(
            f"{host} is {', '.join(machines)}, where nothing is sent: "
            f"{why_refused(private_allowed)}"
        )
    last: OSError = OSError("no address")
    for machine in reachable:
        try:
            sock = socket.create_connection((machine, port), timeout=_left(deadline))
        except OSError as error:
            last = error
            continue
        return _secured(sock, host, deadline) if is_tls else sock
    raise last


def _secured(sock: socket.socket, host: str, deadline: float) -> socket.socket:
    try:
        sock.settimeout(_left(deadline))
        return ssl.create_default_context().wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise


def _exchange(
    sock: socket.socket,
    netloc: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    deadline: float,
    bytes_max: int,
) -> Answer:
    connection = HTTPConnection(netloc)
    connection.sock = sock
    sock.settimeout(_left(deadline))
    connection.request("POST", path, body, {**headers, "Connection": "close"})
    response = HTTPResponse(_Readable(sock, deadline), method="POST")  # type: ignore[arg-type]
    response.begin()
    text = response.read(bytes_max).decode("utf-8", "replace")
    wait = response.getheader("retry-after") or ""
    wait_s = int(wait) if wait.isdecimal() and len(wait) < 9 else 0
    return Answer(response.status, text, min(wait_s, RETRY_AFTER_S_MAX))


def _left(deadline: float) -> float:
    """Return the seconds left. Raises TimeoutError when there are none."""
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Readable(io.RawIOBase):
    """What HTTPResponse reads from: every read gets only what is left of the exchange's time.

    A timeout of the socket alone would start anew with each byte that a slow endpoint lets go.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._deadline))
        return self._sock.recv_into(buffer)
