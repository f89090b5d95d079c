"""Errors that a person or a client can act on; each has an HTTP status and a stable code."""

from __future__ import annotations

from typing import Any


class InterlockError(Exception):
    """Base of all expected errors. The message says what is wrong and where."""

    status = 400
    code = "invalid"

    def __init__(self, message: str, **detail: Any) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class Invalid(InterlockError):
    """The request is invalid; nothing was changed."""


class NotFound(InterlockError):
    status = 404
    code = "not_found"


class Forbidden(InterlockError):
    status = 403
    code = "forbidden"


class Conflict(InterlockError):
    """Another change came first, or the current state does not allow this one."""

    status = 409
    code = "conflict"


class TooLarge(InterlockError):
    """The input exceeds a limit; the message names the limit."""

    status = 413
    code = "too_large"


class Unavailable(InterlockError):
    """A dependency does not respond; a later retry may succeed."""

    status = 503
    code = "unavailable"
