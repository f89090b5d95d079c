"""The refusals that a client sees, each with its HTTP status and a stable code."""

from __future__ import annotations

import orjson

MESSAGE_LENGTH_MAX = 1_000


class Refusal(Exception):
    """A request that gets an error for an answer.

    `code` is stable and made for programs, the message is made for people. `retry_after_s` is
    None where trying again would change nothing.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after_s: int | None = None,
        details: list[dict[str, object]] | None = None,
        allow: bytes = b"",
    ) -> None:
        super().__init__(message)
        # The HTTP status of the answer.
        self.status = status
        # The stable name of the fault.
        self.code = code
        # What a person reads; what a client sent may stand in it, and be long.
        self.message = message[:MESSAGE_LENGTH_MAX]
        # Seconds after which trying again may help.
        self.retry_after_s = retry_after_s
        # The method that a 405 names.
        self.allow = allow
        # One entry per faulty item, where the request carried a list.
        self.details = details

    def body(self) -> bytes:
        """Return the JSON body of the answer."""
        document: dict[str, object] = {"error": self.message, "code": self.code}
        if self.details is not None:
            document["errors"] = self.details
        return orjson.dumps(document)

    def headers(self) -> bytes:
        """Return the header lines that go with the body."""
        lines = b""
        if self.retry_after_s is not None:
            lines += b"retry-after: %d\r\n" % self.retry_after_s
        if self.status == 401:
            lines += b"www-authenticate: Bearer\r\n"
        if self.allow:
            lines += b"allow: %b\r\n" % self.allow
        return lines


def bad_request(code: str, message: str) -> Refusal:
    """Return a 400."""
    return Refusal(400, code, message)


def unavailable(code: str, message: str, retry_after_s: int = 1) -> Refusal:
    """Return a 503 that says when to come back."""
    return Refusal(503, code, message, retry_after_s=retry_after_s)
