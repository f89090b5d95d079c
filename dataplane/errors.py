"""The errors that clients get, each with an HTTP status and a stable code."""

from __future__ import annotations

import orjson

MESSAGE_LENGTH_MAX = 1_000


class Refusal(Exception):
    """A request that is answered with an error.

    `code` is stable and for programs, the message is for people. `retry_after_s` is None if a retry
    would not help.
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
        # The stable name of the error.
        self.code = code
        # The text for people; it may contain text from the client, so its length is limited.
        self.message = message[:MESSAGE_LENGTH_MAX]
        # Seconds after which a retry may help.
        self.retry_after_s = retry_after_s
        # The value of the `allow` header of a 405.
        self.allow = allow
        # One entry per faulty item, if the request carried a list.
        self.details = details

    def body(self) -> bytes:
        document: dict[str, object] = {"error": self.message, "code": self.code}
        if self.details is not None:
            document["errors"] = self.details
        return orjson.dumps(document)

    def headers(self) -> bytes:
        lines = b""
        if self.retry_after_s is not None:
            lines += b"retry-after: %d\r\n" % self.retry_after_s
        if self.status == 401:
            lines += b"www-authenticate: Bearer\r\n"
        if self.allow:
            lines += b"allow: %b\r\n" % self.allow
        return lines


def bad_request(code: str, message: str) -> Refusal:
    return Refusal(400, code, message)


def unavailable(code: str, message: str, retry_after_s: int = 1) -> Refusal:
    """Return a 503 with a `retry-after` header."""
    return Refusal(503, code, message, retry_after_s=retry_after_s)
