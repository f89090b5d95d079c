"""Errors that a person or a client can act on; each carries its HTTP status and a stable code."""

from __future__ import annotations

from typing import Any


class InterlockError(Exception):
    """Base of the anticipated errors. The message says what was wrong and where."""

    status = 400
    code = "invalid"

    def __init__(self, message: str, **detail: Any) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class Invalid(InterlockError):
    """The request contradicts itself or the rules; nothing was changed."""


class NotFound(InterlockError):
    status = 404
    code = "not_found"


class Forbidden(InterlockError):
    status = 403
    code = "forbidden"


class Conflict(InterlockError):
    """Somebody was faster, or the thing is not in a state that allows this."""

    status = 409
    code = "conflict"


class TooLarge(InterlockError):
    """What was sent is beyond a limit; the message names the limit."""

    status = 413
    code = "too_large"


class Unavailable(InterlockError):
    """Something that we depend on does not answer; trying again later may help."""

    status = 503
    code = "unavailable"
