"""The id of a prediction, which says what was predicted: nothing is stored for a request.

`MODEL:VERSION:PROCESS-TIME` and, where the request had a unit in a split, `:UNIT` behind it.
VERSION is the one that answered, PROCESS is random for each life of a process and TIME when it
answered, in hexadecimal nanoseconds since 1970; UNIT is base64url without padding, the others are
percent-encoded where they hold more than letters, digits and `_.-~`. To clients it is opaque.

Where there are tenants, `~SEAL` stands behind it: a keyed hash of the tenant whose request it was,
and of all that stands before TIME, which only those can make who know the routing table's secret.
For the rest an id is a claim, not a proof: who takes one from outside holds it against what it
knows.
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
# Bytes of the hash; in the id they are hexadecimal.
_SEAL_SIZE = 8
_SEALS_MAX = 1_000
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_STANDARD = bytes.maketrans(b"-_", b"+/")


class RequestIdError(ValueError):
    """No id of ours; the text says why."""


class RequestId(msgspec.Struct, frozen=True):
    """What an id says. `unit` is empty where the request had none, or the model no split.

    `at_ms` is rounded up, and so no earlier than the exposure of the same answer. `answer` is what
    no other answer has: see `answer_key`.
    """

    model: str
    version: str
    at_ms: int
    unit: str = ""
    answer: str = ""


def request_id_head(model: str, version: str, process: str) -> bytes:
    """Return what the ids of all answers of `version` by one process begin with."""
    return f"{quote(model, safe='')}:{quote(version, safe='')}:{process}-".encode()


def request_id_unit(unit: str) -> bytes:
    """Return what stands behind the time for `unit`."""
    data = b2a_base64(unit.encode("utf-8", "replace"), newline=False)
    return b":" + data.translate(_URL_SAFE, b"=")


class Seal:
    """Seals the ids of one tenant's answers; `tenant` is empty for nobody.

    It says that this process answered the tenant with this version, and not when or about whom:
    one hash serves many ids, where one for each would cost as much as all else about them.
    """

    __slots__ = ("_begun", "_made")

    def __init__(self, secret: str, tenant: str) -> None:
        # The hash of what all ids of the tenant have in common. Long secrets are hashed first.
        key = blake2b(secret.encode(), digest_size=32).digest()
        self._begun = blake2b(tenant.encode() + b"\0", digest_size=_SEAL_SIZE, key=key)
        # The seals by what ids begin with; bounded, since versions come and go.
        self._made: dict[bytes, bytes] = {}

    def of(self, head: bytes) -> bytes:
        """Return what stands behind ids that begin with `head`: see `request_id_head`."""
        made = self._made.get(head)
        return made if made is not None else self._make(head)

    def is_on(self, text: str) -> bool:
        """Say whether the id `text` ends in this seal."""
        found = _FORM.fullmatch(text)
        if found is None:
            return False
        made = self.of(text[: found.start(4)].encode())
        return hmac.compare_digest(made, (found[6] or "").encode())

    def _make(self, head: bytes) -> bytes:
        if len(self._made) >= _SEALS_MAX:
            self._made.clear()
        hashed = self._begun.copy()
        hashed.update(head)
        made = self._made[head] = b"~" + b2a_hex(hashed.digest())
        return made


def answer_key(process: str, at_ns: int) -> str:
    """Return the part of an id that is unique: which process answered, and when."""
    return f"{process}-{at_ns:x}"


def parse_request_id(text: str) -> RequestId:
    """Return what `text` says. Raises RequestIdError for anything but an id of a prediction."""
    if len(text) > REQUEST_ID_LENGTH_MAX:
        raise RequestIdError(f"request_id is longer than {REQUEST_ID_LENGTH_MAX} characters")
    found = _FORM.fullmatch(text)
    try:
        if found is None:
            raise ValueError(text)
        model, version, process, at_hex, unit, _ = found.groups()
        at_ns = int(at_hex, 16)
        return RequestId(
            _name(model),
            _name(version),
            -(-at_ns // 1_000_000),
            _unit(unit) if unit else "",
            answer_key(process, at_ns),
        )
    except ValueError:
        raise RequestIdError("request_id is none that a prediction returned") from None


def check_age(request: RequestId, now_ms: int) -> None:
    """Raise RequestIdError for a request of an instant at which no outcome may be either."""
    if request.at_ms > now_ms + OUTCOME_AHEAD_MAX_S * 1_000:
        raise RequestIdError("request_id is of a request more than an hour in the future")
    if request.at_ms < now_ms - OUTCOME_AGE_MAX_S * 1_000:
        raise RequestIdError("request_id is of a request more than a year ago")


def unit_of(unit: str, request: RequestId) -> str:
    """Return whose outcome it is: `unit`, or that of the request where none is named.

    Raises RequestIdError when the request was another unit's.
    """
    if unit and request.unit and unit != request.unit:
        raise RequestIdError("request_id is of another unit than unit_id")
    return unit or request.unit


def with_unit(outcome: Outcome) -> Outcome:
    """Return an outcome with its request's unit where it names none. Raises RequestIdError."""
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
    # No database takes it: an id that holds it would cost its neighbours in a batch as well.
    if "\x00" in text:
        raise ValueError(text)
    return text
