"""Asks a service outside that the operator set up, over HTTP, within bounds of time and size.

Whatever goes wrong comes out of here as ProviderError, with words for people: what, where and why.
No redirect is followed, and no answer is read beyond its bound.
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
    """A service gave no usable answer; the text says which, and why."""


@dataclass(frozen=True)
class Call:
    """One POST to a service; `who` names it to people."""

    who: str
    url: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes


def send(call: Call) -> Answer:
    """Return the service's answer, of whatever status. Raises ProviderError."""
    # A timeout is for each read: one that answers byte by byte needs a bound for all of them.
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
                    raise ProviderError(f"{call.who} answers more than {BODY_BYTES_MAX} bytes")
                if monotonic() > until:
                    raise ProviderError(f"{call.who} did not answer within {CALL_S:g} s")
    except httpx.TimeoutException:
        raise ProviderError(f"{call.who} did not answer within {CALL_S:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise ProviderError(f"{call.who} cannot be asked: {printable(str(error))}") from None
    if response.is_redirect:
        raise ProviderError(f"{call.who} answers {response.status_code}: no redirect is followed")
    return Answer(response.status_code, bytes(body))


def shown_url(url: str) -> str:
    """Return the server's address without what may be secret: password, path and query."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "a bad address"
    return f"{parts.scheme}://{parts.hostname}{port}"


def printable(text: str) -> str:
    """Return an outsider's words in one line of bounded length."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:REASON_MAX]
