"""Refusals of a connection before an exchange is complete."""

from __future__ import annotations

import httptools

from dataplane.config import Limits
from dataplane.errors import Refusal

# If one of these were repeated, two readers could see two different requests.
_ONCE = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"content-encoding",
     b"inference-header-content-length")
)  # fmt: skip


def head_too_large() -> Refusal:
    return Refusal(431, "head_too_large", "the request line and headers are too large")


def body_too_large(limits: Limits) -> Refusal:
    return Refusal(413, "body_too_large", f"the body is larger than {limits.body_bytes_max} bytes")


def refusal_of(error: Exception) -> Refusal:
    """Return the refusal that a callback raised, or the one for malformed bytes."""
    cause = error.__context__
    if isinstance(cause, Refusal):
        return cause
    if isinstance(error, httptools.HttpParserCallbackError) and cause is not None:
        raise error
    return Refusal(400, "malformed_http", f"not an HTTP/1.1 request: {error}")


def is_legacy(version: str) -> bool:
    """Return whether a request is of HTTP/1.0. Raises Refusal for versions other than 1.0 and 1.1.

    The parser reports 0.9 for a request line without a version: it is malformed.
    """
    if version not in ("1.0", "1.1"):
        raise Refusal(400, "malformed_http", f"HTTP/{version} is not supported")
    return version == "1.0"


def refuse_repeated(name: bytes) -> None:
    """Raise Refusal for a second header of a name that must be unique."""
    if name in _ONCE:
        raise Refusal(400, "malformed_http", f"a request must have one {name.decode()} header")
