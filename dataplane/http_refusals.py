"""What a connection refuses before an exchange is whole."""

from __future__ import annotations

import httptools

from dataplane.config import Limits
from dataplane.errors import Refusal


def head_too_large() -> Refusal:
    return Refusal(431, "head_too_large", "the request line and headers are too large")


def body_too_large(limits: Limits) -> Refusal:
    return Refusal(413, "body_too_large", f"the body is over {limits.body_bytes_max} bytes")


def refusal_of(error: Exception) -> Refusal:
    """Return the refusal that a callback raised, or the one for malformed bytes."""
    cause = error.__context__
    if isinstance(cause, Refusal):
        return cause
    if isinstance(error, httptools.HttpParserCallbackError) and cause is not None:
        raise error
    return Refusal(400, "malformed_http", f"not an HTTP/1.1 request: {error}")
