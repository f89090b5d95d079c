"""Parse a row of a file into an outcome, or give the reason why it is malformed. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from contract.messages import Outcome
from contract.request_ids import RequestIdError, with_unit

COLUMNS = ("event_id", "unit_id", "metric", "value", "occurred_at")
# Optional columns; all others are ignored.
OPTIONAL = ("request_id",)
WORDS = {"true": 1.0, "false": 0.0}


class BadRow(Exception):
    """A malformed row. Its message is a reason that is counted, so there are only few messages."""


def outcome_of(row: Mapping[str, Any]) -> Outcome:
    """Return the outcome in `row`, whose fields are text, numbers, timestamps or None.

    Raises BadRow for a missing field or a wrong type.
    """
    outcome = Outcome(
        event_id=_text(row, "event_id"),
        unit_id=_text(row, "unit_id"),
        metric=_text(row, "metric"),
        value=_value(row["value"]),
        occurred_at_ms=_milliseconds(row["occurred_at"]),
        request_id=_text(row, "request_id"),
    )
    try:
        return with_unit(outcome)
    except RequestIdError as error:
        raise BadRow(str(error)) from None


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    # `ingestion.Judge` checks texts further, for all outcomes.
    return "" if value is None else str(value).strip()


def _value(value: Any) -> float:
    if isinstance(value, bool | int | float):
        return float(value)
    text = "" if value is None else str(value).strip()
    if not text:
        raise BadRow("value is empty")
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return float(text)
    except ValueError:
        if "," in text:
            raise BadRow("value contains a comma: use a decimal point and no separators") from None
        raise BadRow("value is not a number") from None


def _milliseconds(value: Any) -> int:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _finite_int(value)
    if isinstance(value, datetime):
        return _to_milliseconds(value)
    text = "" if value is None else str(value).strip()
    if not text:
        raise BadRow("occurred_at is empty")
    if text.lstrip("-").isdecimal():
        return _finite_int(int(text[:20]))
    try:
        return _to_milliseconds(datetime.fromisoformat(text))
    except ValueError:
        raise BadRow("occurred_at is not a valid ISO 8601 timestamp or Unix time in ms") from None


def _finite_int(value: float) -> int:
    if not math.isfinite(value):
        raise BadRow("occurred_at is not a finite number of milliseconds")
    return int(value)


def _to_milliseconds(at: datetime) -> int:
    if at.tzinfo is None:
        raise BadRow("occurred_at has no time zone")
    return round(at.timestamp() * 1_000)
