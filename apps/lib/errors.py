"""Errors that a person or a client can act on; each has an HTTP status and a stable code."""

from __future__ import annotations

from typing import Any


class InterlockError(Exception):
    """Base of all expected errors. `message` says what is wrong, and where: `field: text`.

    `field` names what the error is about: a field of the request, or a part of it such as
    "metric revenue". It is empty for errors of the request as a whole.
    """

    status = 400
    code = "invalid"

    def __init__(self, text: str, *, field: str = "", **detail: Any) -> None:
        self.text = text
        self.field = field
        self.message = f"{field}: {text}" if field else text
        self.detail = {**detail, "field": field} if field else detail
        super().__init__(self.message)

    @property
    def sentence(self) -> str:
        """The text as it stands beside its field."""
        return f"{self.text[:1].upper()}{self.text[1:]}"


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
