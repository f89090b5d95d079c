"""A row of a file into an outcome: what stands in its fields, or why that is none. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from contract.messages import Outcome
from contract.request_ids import RequestIdError, with_unit

COLUMNS = ("event_id", "unit_id", "metric", "value", "occurred_at")
# What a file may have besides; others are left alone.
OPTIONAL = ("request_id",)
WORDS = {"true": 1.0, "false": 0.0}


class BadRow(Exception):
    """One row cannot be an outcome; its text is the reason, which is counted, so of few kinds."""


def outcome_of(row: Mapping[str, Any]) -> Outcome:
    """Return the outcome in `row`, whose fields are text, numbers, instants or None.

    Raises BadRow for what is missing or of another type.
    """
    read = Outcome(
        event_id=_text(row, "event_id"),
        unit_id=_text(row, "unit_id"),
        metric=_text(row, "metric"),
        value=_value(row["value"]),
        occurred_at_ms=_milliseconds(row["occurred_at"]),
        request_id=_text(row, "request_id"),
    )
    try:
        return with_unit(read)
    except RequestIdError as error:
        raise BadRow(str(error)) from None


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    # The rest of what a text may not be is judged with all outcomes.
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
            raise BadRow("value has a comma: decimals take a point, thousands nothing") from None
        raise BadRow("value is no number") from None


def _milliseconds(value: Any) -> int:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _whole(value)
    if isinstance(value, datetime):
        return _of_instant(value)
    text = "" if value is None else str(value).strip()
    if not text:
        raise BadRow("occurred_at is empty")
    if text.lstrip("-").isdecimal():
        return _whole(int(text[:20]))
    try:
        return _of_instant(datetime.fromisoformat(text))
    except ValueError:
        raise BadRow("occurred_at is no ISO 8601 instant, and no milliseconds since 1970") from None


def _whole(value: float) -> int:
    if not math.isfinite(value):
        raise BadRow("occurred_at is no finite number of milliseconds")
    return int(value)


def _of_instant(at: datetime) -> int:
    if at.tzinfo is None:
        raise BadRow("occurred_at has no time zone")
    return round(at.timestamp() * 1_000)
