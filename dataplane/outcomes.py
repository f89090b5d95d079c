"""Reads `POST /outcomes`: one outcome or a list, each checked; one fault refuses the request whole.

Refused whole, a client corrects it and sends it again without asking which part was taken; the
`event_id` makes a repetition harmless.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from math import isfinite

import orjson

from contract.messages import (
    OUTCOME_AGE_MAX_S,
    OUTCOME_AHEAD_MAX_S,
    OUTCOME_VALUE_MAX,
    Outcome,
)
from contract.request_ids import REQUEST_ID_LENGTH_MAX, with_unit
from dataplane.bounds import EXTRA_VALUES_MAX, Bounds
from dataplane.errors import Refusal, bad_request

OUTCOMES_MAX = 1_000
METRIC_LENGTH_MAX = 100
ID_LENGTH_MAX = 200
# What a request may hold: every field of the most outcomes, at its longest.
OUTCOMES_BOUNDS = Bounds(
    OUTCOMES_MAX * (REQUEST_ID_LENGTH_MAX + 2_048), OUTCOMES_MAX * 8 + EXTRA_VALUES_MAX
)
_FIELDS = {"unit_id", "metric", "value", "occurred_at", "event_id", "request_id"}


def read_outcomes(body: bytes, now_ms: int, new_id: Callable[[], str]) -> list[Outcome]:
    """Return the outcomes in `body`; `new_id` names those that bring no `event_id`.

    Raises Refusal with one entry per faulty item.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request("malformed_json", f"the body is not JSON: {error}") from None
    items = document if type(document) is list else [document]
    if len(items) > OUTCOMES_MAX:
        raise Refusal(
            413, "too_many_outcomes", f"{len(items)} outcomes; one request takes {OUTCOMES_MAX}"
        )
    outcomes = []
    faults: list[dict[str, object]] = []
    for index, item in enumerate(items):
        try:
            outcomes.append(_read(item, now_ms, new_id))
        except ValueError as error:
            faults.append({"index": index, "error": str(error)})
    if faults:
        raise Refusal(
            400,
            "invalid_outcome",
            f"{len(faults)} of {len(items)} outcomes are invalid: {faults[0]['error']}",
            details=faults,
        )
    return outcomes


def _read(item: object, now_ms: int, new_id: Callable[[], str]) -> Outcome:
    if type(item) is not dict:
        raise ValueError("an outcome must be an object")
    unknown = item.keys() - _FIELDS
    if unknown:
        raise ValueError(f"unknown field {min(unknown)!r}")
    event_id = item.get("event_id")
    has_request = item.get("request_id") is not None
    has_unit = not has_request or item.get("unit_id") is not None
    outcome = Outcome(
        event_id=new_id() if event_id is None else _text(item, "event_id", ID_LENGTH_MAX),
        unit_id=_text(item, "unit_id", ID_LENGTH_MAX) if has_unit else "",
        metric=_text(item, "metric", METRIC_LENGTH_MAX),
        value=_value(item.get("value")),
        occurred_at_ms=_instant(item.get("occurred_at"), now_ms),
        request_id=_text(item, "request_id", REQUEST_ID_LENGTH_MAX) if has_request else "",
    )
    return with_unit(outcome)


def _text(item: dict[str, object], field: str, length_max: int) -> str:
    value = item.get(field)
    if type(value) is int:
        value = str(value)
    if type(value) is not str or not 0 < len(value) <= length_max:
        raise ValueError(f"{field!r} must be a string of 1 to {length_max} characters")
    if "\x00" in value:
        raise ValueError(f"{field!r} holds a NUL character")
    return value


def _value(value: object) -> float:
    if not isinstance(value, (int, float)) or not isfinite(value):
        raise ValueError("'value' must be a number or a boolean")
    if abs(value) > OUTCOME_VALUE_MAX:
        raise ValueError(f"'value' is beyond {OUTCOME_VALUE_MAX:g}")
    return float(value)


def _instant(value: object, now_ms: int) -> int:
    if value is None:
        return now_ms
    if type(value) is not str:
        raise ValueError("'occurred_at' must be an ISO 8601 string")
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(f"'occurred_at' is no ISO 8601 instant: {value[:40]!r}") from None
    if at.tzinfo is None:
        raise ValueError("'occurred_at' needs a time zone, such as a final Z")
    at_ms = int(at.timestamp() * 1000)
    if at_ms - now_ms > OUTCOME_AHEAD_MAX_S * 1000:
        raise ValueError(f"'occurred_at' is more than an hour in the future: {value[:40]!r}")
    if now_ms - at_ms > OUTCOME_AGE_MAX_S * 1000:
        raise ValueError(f"'occurred_at' is more than a year ago: {value[:40]!r}")
    return at_ms
