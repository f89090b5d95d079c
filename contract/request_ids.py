"""The id of a prediction contains its model, version, time and unit, so nothing is stored for it.

`MODEL:VERSION:PROCESS-TIME` and, if the request had a unit in a split, `:UNIT` after it. VERSION is
the one that answered, PROCESS is random for each boot of a process, and TIME is when it answered,
in hexadecimal nanoseconds since 1970; UNIT is base64url without padding, and the others are
percent-encoded where they hold more than letters, digits and `_.-~`. Clients treat it as opaque.

If there are tenants, `~SEAL` follows: a keyed hash of the tenant whose request it was, and of
everything before TIME. Only processes that know the secret of the routing table can make it. The
rest of an id is a claim and not a proof: a receiver compares it with what it knows.
"""

from __future__ import annotations

import hmac
import re
from binascii import a2b_base64, b2a_base64, b2a_hex
from hashlib import blake2b
from urllib.parse import quote, unquote

import msgspec

from contract.messages import OUTCOME_AGE_MAX_S, OUTCOME_AHEAD_MAX_S, Outcome

REQUEST_ID_LENGTH_MAX = 2_000
UNIT_LENGTH_MAX = 200
_NAME = r"((?:[A-Za-z0-9_.~-]|%[0-9A-F]{2})+)"
_FORM = re.compile(
    rf"{_NAME}:{_NAME}:([0-9a-f]+)-([0-9a-f]{{1,16}})(?::([A-Za-z0-9_-]+))?(~[0-9a-f]{{16}})?"
)
# Bytes of the hash, which the id holds in hexadecimal.
_SEAL_SIZE = 8
_SEALS_MAX = 1_000
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_STANDARD = bytes.maketrans(b"-_", b"+/")


class RequestIdError(ValueError):
    """Text that is not a request id; the message gives the reason."""


class RequestId(msgspec.Struct, frozen=True):
    """The parts of an id; `unit` is empty for a request without a unit, or outside a split.

    `at_ms` is rounded up, and so is no earlier than the exposure of the same answer. `answer` is
    unique to the answer: see `answer_key`.
    """

    model: str
    version: str
    at_ms: int
    unit: str = ""
    answer: str = ""


def request_id_head(model: str, version: str, process: str) -> bytes:
    """Return the common prefix of the ids of all answers of `version` by one process."""
    return f"{quote(model, safe='')}:{quote(version, safe='')}:{process}-".encode()


def request_id_unit(unit: str) -> bytes:
    """Return the part of an id that follows the time, for `unit`."""
    data = b2a_base64(unit.encode("utf-8", "replace"), newline=False)
    return b":" + data.translate(_URL_SAFE, b"=")


class Seal:
    """Seals the ids of one tenant's answers; `tenant` is empty for anonymous clients.

    A seal proves that this process answered the tenant with this version, but not when or for which
    unit: one hash serves many ids, because a hash per id would cost as much as everything else
    about the id.
    """

    __slots__ = ("_seals", "_state")

    def __init__(self, secret: str, tenant: str) -> None:
        # The hash state of what all ids of the tenant share. Long secrets are hashed first.
        key = blake2b(secret.encode(), digest_size=32).digest()
        self._state = blake2b(tenant.encode() + b"\0", digest_size=_SEAL_SIZE, key=key)
        # Seals by the prefix of the ids; bounded, because versions come and go.
        self._seals: dict[bytes, bytes] = {}

    def of(self, head: bytes) -> bytes:
        """Return the seal for ids with the prefix `head`: see `request_id_head`."""
        seal = self._seals.get(head)
        return seal if seal is not None else self._make(head)

    def matches(self, text: str) -> bool:
        """Return whether the id `text` ends in this seal."""
        match = _FORM.fullmatch(text)
        if match is None:
            return False
        seal = self.of(text[: match.start(4)].encode())
        return hmac.compare_digest(seal, (match[6] or "").encode())

    def _make(self, head: bytes) -> bytes:
        if len(self._seals) >= _SEALS_MAX:
            self._seals.clear()
        hashed = self._state.copy()
        hashed.update(head)
        seal = self._seals[head] = b"~" + b2a_hex(hashed.digest())
        return seal


def answer_key(process: str, at_ns: int) -> str:
    """Return the unique part of an id: the process that answered, and when."""
    return f"{process}-{at_ns:x}"


def parse_request_id(text: str) -> RequestId:
    """Parse the id of a prediction. Raises RequestIdError."""
    if len(text) > REQUEST_ID_LENGTH_MAX:
        raise RequestIdError(f"request_id is longer than {REQUEST_ID_LENGTH_MAX} characters")
    match = _FORM.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        model, version, process, at_hex, unit, _ = match.groups()
        at_ns = int(at_hex, 16)
        return RequestId(
            _name(model),
            _name(version),
            -(-at_ns // 1_000_000),
            _unit(unit) if unit else "",
            answer_key(process, at_ns),
        )
    except ValueError:
        raise RequestIdError("request_id is not the id of a prediction") from None


def check_age(request: RequestId, now_ms: int) -> None:
    """Raise RequestIdError for a request at a time that outcomes may not have either."""
    if request.at_ms > now_ms + OUTCOME_AHEAD_MAX_S * 1_000:
        raise RequestIdError("request_id is of a request that is more than an hour in the future")
    if request.at_ms < now_ms - OUTCOME_AGE_MAX_S * 1_000:
        raise RequestIdError("request_id is of a request that is more than a year old")


def unit_of(unit: str, request: RequestId) -> str:
    """Return the unit of an outcome: `unit`, or that of the request if `unit` is empty.

    Raises RequestIdError if the request was of another unit.
    """
    if unit and request.unit and unit != request.unit:
        raise RequestIdError("request_id is of another unit than unit_id")
    return unit or request.unit


def with_unit(outcome: Outcome) -> Outcome:
    """Return `outcome` with the unit of its request if it names none. Raises RequestIdError."""
    if not outcome.request_id:
        return outcome
    unit = unit_of(outcome.unit_id, parse_request_id(outcome.request_id))
    return msgspec.structs.replace(outcome, unit_id=unit)


def _name(data: str) -> str:
    return _storable(unquote(data, errors="strict"))


def _unit(data: str) -> str:
    padded = data.encode("ascii").translate(_STANDARD) + b"=" * (-len(data) % 4)
    unit = _storable(a2b_base64(padded, strict_mode=True).decode())
    if len(unit) > UNIT_LENGTH_MAX:
        raise ValueError(unit)
    return unit


def _storable(text: str) -> str:
    # Databases do not store it: an id that holds it would also fail the rest of its batch.
    if "\x00" in text:
        raise ValueError(text)
    return text
