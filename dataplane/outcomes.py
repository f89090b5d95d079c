"""Parses `POST /outcomes`: one outcome or a list; one invalid outcome refuses the whole request.

As the request is refused as a whole, a client corrects it and sends all of it again; the `event_id`
makes repetitions harmless. A leap second is not an error that a client can correct: that outcome
alone is refused, and the others are accepted. The same holds for an outcome whose metric the table
does not know (`refusals`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from math import isfinite

import msgspec
import orjson

from contract.messages import (
    OUTCOME_AGE_MAX_S,
    OUTCOME_AHEAD_MAX_S,
    OUTCOME_VALUE_MAX,
    Outcome,
)
from contract.refusals import (
    IN_THE_FUTURE,
    LEAP_SECOND,
    MALFORMED,
    OTHER_MODEL,
    OTHERS_REQUEST,
    TOO_OLD,
)
from contract.request_ids import (
    REQUEST_ID_LENGTH_MAX,
    UNIT_LENGTH_MAX,
    RequestId,
    check_age,
    parse_request_id,
    unit_of,
)
from dataplane.admission import Tenancy
from dataplane.errors import Refusal, bad_request
from dataplane.request_bounds import EXTRA_VALUES_MAX, Bounds

OUTCOMES_MAX = 1_000
METRIC_LENGTH_MAX = 100
ID_LENGTH_MAX = 200
# Bounds of a request: all fields of the maximum number of outcomes, at their longest.
OUTCOMES_BOUNDS = Bounds(
    OUTCOMES_MAX * (REQUEST_ID_LENGTH_MAX + 2_048), OUTCOMES_MAX * 8 + EXTRA_VALUES_MAX
)
_FIELDS = {"unit_id", "metric", "value", "occurred_at", "event_id", "request_id"}


# 23:59:60 in UTC, also in the time of another zone.
_LEAP_SECOND = re.compile(r"([T ]\d\d:?\d\d:?)60(?!\d)")


class InvalidTime(ValueError):
    """A time that no outcome can have; `reason` is what it counts as."""

    reason = MALFORMED


class LeapSecond(InvalidTime):
    """The time exists, but has no number in seconds since 1970."""

    reason = LEAP_SECOND


class InTheFuture(InvalidTime):
    reason = IN_THE_FUTURE


class TooOld(InvalidTime):
    reason = TOO_OLD


class Outcomes(list[Outcome]):
    """The accepted outcomes; `refused` has an entry for each outcome that is refused alone."""

    def __init__(
        self, accepted: Iterable[Outcome] = (), refused: Iterable[dict[str, object]] = ()
    ) -> None:
        super().__init__(accepted)
        self.refused = list(refused)


def read_outcomes(body: bytes, now_ms: int, new_id: Callable[[], str]) -> Outcomes:
    """Parse the outcomes in `body`; leap seconds are refused alone.

    `new_id` makes ids for outcomes without `event_id`. Raises Refusal with one entry per invalid
    item, also if no outcome is left.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request("malformed_json", f"the body is not valid JSON: {error}") from None
    items = document if type(document) is list else [document]
    if len(items) > OUTCOMES_MAX:
        raise Refusal(
            413, "too_many_outcomes", f"{len(items)} outcomes; at most {OUTCOMES_MAX} are allowed"
        )
    outcomes = Outcomes()
    faults: list[dict[str, object]] = []
    for index, item in enumerate(items):
        try:
            outcomes.append(_read(item, now_ms, new_id))
        except LeapSecond as error:
            outcomes.refused.append(_entry(index, item, error))
        except ValueError as error:
            faults.append(_entry(index, item, error))
    if not outcomes:
        faults += outcomes.refused
    if faults:
        raise invalid(faults, len(items))
    return outcomes


def check_sender(outcomes: Outcomes, sender: Tenancy) -> None:
    """Raise Refusal (403) if outcomes name requests that are not the sender's or not allowed."""
    faults: list[dict[str, object]] = []
    refused = {entry["index"] for entry in outcomes.refused}
    indexes = (i for i in range(len(outcomes) + len(refused)) if i not in refused)
    for index, outcome in zip(indexes, outcomes, strict=True):
        reason = _foreign_reason(outcome, sender) if outcome.request_id else ""
        if reason:
            faults.append(
                {
                    "index": index,
                    "event_id": outcome.event_id,
                    "metric": outcome.metric,
                    "reason": reason,
                    "error": reason,
                }
            )
    if faults:
        message = f"{len(faults)} outcomes belong to other senders: {faults[0]['error']}"
        raise Refusal(403, "foreign_outcome", message, details=faults)


def _foreign_reason(outcome: Outcome, sender: Tenancy) -> str:
    """Return why the request of an outcome does not belong to the sender, or ""."""
    models = sender.models
    if models is not None and parse_request_id(outcome.request_id).model not in models:
        return OTHER_MODEL
    if sender.seal is not None and not sender.seal.matches(outcome.request_id):
        return OTHERS_REQUEST
    return ""


def sent_by(outcomes: Outcomes, sender: Tenancy) -> list[Outcome]:
    models = tuple(sorted(sender.models)) if sender.models is not None else ()
    return [msgspec.structs.replace(each, tenant=sender.name, models=models) for each in outcomes]


def invalid(faults: list[dict[str, object]], count: int) -> Refusal:
    message = f"{len(faults)} of {count} outcomes are invalid: {faults[0]['error']}"
    return Refusal(400, "invalid_outcome", message, details=faults)


def _entry(index: int, item: object, error: ValueError) -> dict[str, object]:
    """Return the error entry of an invalid item, which clients read and operators count."""
    metric = item.get("metric") if type(item) is dict else None
    return {
        "index": index,
        "metric": metric[:METRIC_LENGTH_MAX] if type(metric) is str else "",
        "reason": getattr(error, "reason", MALFORMED),
        "error": str(error),
    }


def _read(item: object, now_ms: int, new_id: Callable[[], str]) -> Outcome:
    if type(item) is not dict:
        raise ValueError("an outcome must be an object")
    unknown = item.keys() - _FIELDS
    if unknown:
        raise ValueError(f"unknown field {min(unknown)!r}")
    event_id = item.get("event_id")
    named = item.get("request_id")
    request = _request(named, now_ms) if named not in (None, "") else None
    has_unit = request is None or item.get("unit_id") not in (None, "")
    unit = _text(item, "unit_id", UNIT_LENGTH_MAX) if has_unit else ""
    return Outcome(
        event_id=new_id() if event_id is None else _text(item, "event_id", ID_LENGTH_MAX),
        unit_id=unit if request is None else unit_of(unit, request),
        metric=_text(item, "metric", METRIC_LENGTH_MAX),
        value=_value(item.get("value")),
        occurred_at_ms=_instant(item.get("occurred_at"), now_ms),
        request_id=str(named) if request is not None else "",
    )


def _request(named: object, now_ms: int) -> RequestId:
    if type(named) is not str:
        raise ValueError("'request_id' must be a string")
    request = parse_request_id(named)
    check_age(request, now_ms)
    return request


def _text(item: dict[str, object], field: str, length_max: int) -> str:
    value = item.get(field)
    if type(value) is int:
        value = str(value)
    if type(value) is not str or not 0 < len(value) <= length_max:
        raise ValueError(f"{field!r} must be a string of 1 to {length_max} characters")
    if "\x00" in value:
        raise ValueError(f"{field!r} contains a NUL character")
    return value


def _value(value: object) -> float:
    if not isinstance(value, (int, float)) or not isfinite(value):
        raise ValueError("'value' must be a number or a boolean")
    if abs(value) > OUTCOME_VALUE_MAX:
        raise ValueError(
            f"'value' must be between -{OUTCOME_VALUE_MAX:g} and {OUTCOME_VALUE_MAX:g}"
        )
    return float(value)


def _instant(value: object, now_ms: int) -> int:
    if value is None:
        return now_ms
    if type(value) is not str:
        raise ValueError("'occurred_at' must be an ISO 8601 string")
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        if _is_leap_second(value):
            raise LeapSecond(
                f"'occurred_at' is a leap second, which cannot be stored: {value[:40]!r}; send it "
                "as the second before or after"
            ) from None
        raise ValueError(
            f"'occurred_at' is not a valid ISO 8601 timestamp: {value[:40]!r}"
        ) from None
    if at.tzinfo is None:
        raise ValueError("'occurred_at' must have a time zone, such as a final Z")
    at_ms = int(at.timestamp() * 1000)
    if at_ms - now_ms > OUTCOME_AHEAD_MAX_S * 1000:
        raise InTheFuture(f"'occurred_at' is more than an hour in the future: {value[:40]!r}")
    if now_ms - at_ms > OUTCOME_AGE_MAX_S * 1000:
        raise TooOld(f"'occurred_at' is more than a year ago: {value[:40]!r}")
    return at_ms


def _is_leap_second(value: str) -> bool:
    """Return whether `value` is a valid time except for its second 60."""
    before, count = _LEAP_SECOND.subn(r"\g<1>59", value[:60], count=1)
    try:
        return count == 1 and datetime.fromisoformat(before).tzinfo is not None
    except ValueError:
        return False
