"""Calls an external service that the operator configured, over HTTP, with limits of time and size.

Every failure is raised as ProviderError, whose message names the service and the cause. Redirects
must not be followed, and no response is read beyond its size limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from urllib.parse import urlsplit

import httpx

CALL_S = 3.0
BODY_BYTES_MAX = 256 * 1024
REASON_MAX = 500


class ProviderError(Exception):
    """A service gave no usable answer; the message names the service and the cause."""


@dataclass(frozen=True)
class Call:
    """One POST to a service, named `service` in messages."""

    service: str
    url: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes


def send(call: Call) -> Answer:
    """Return the service's answer, whatever its status. Raises ProviderError."""
    # The HTTP timeout is per read: an answer sent byte by byte needs a limit for all reads.
    until = monotonic() + CALL_S
    headers = {"accept-encoding": "identity", **call.headers}
    try:
        with httpx.stream(
            "POST", call.url, content=call.body, headers=headers, timeout=CALL_S
        ) as response:
            body = bytearray()
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > BODY_BYTES_MAX:
                    raise ProviderError(f"{call.service} sent more than {BODY_BYTES_MAX} bytes")
                if monotonic() > until:
                    raise ProviderError(f"{call.service} did not answer within {CALL_S:g} s")
    except httpx.TimeoutException:
        raise ProviderError(f"{call.service} did not answer within {CALL_S:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise ProviderError(f"{call.service} cannot be reached: {printable(str(error))}") from None
    if response.is_redirect:
        raise ProviderError(
            f"{call.service} returned {response.status_code}: redirects are not followed"
        )
    return Answer(response.status_code, bytes(body))


def redact_url(url: str) -> str:
    """Return the server's address without parts that may be secret: password, path and query."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an invalid address"
    return f"{parts.scheme}://{parts.hostname}{port}"


def printable(text: str) -> str:
    """Return text from outside as one printable line of at most REASON_MAX characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:REASON_MAX]
