"""Parses timestamps from clients. They must have a time zone: 14:05 alone is ambiguous."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rest_framework import serializers

from apps.lib.errors import Invalid

EXAMPLE = "2026-11-25T14:05:00Z"


def parse_timestamp(text: str, name: str) -> datetime:
    """Parse an ISO 8601 timestamp. Raises Invalid, which names the field."""
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise Invalid(
            f"{text!r} is not a valid ISO 8601 timestamp, such as {EXAMPLE} "
            "(in a URL a + is written %2B).",
            field=name,
        ) from None
    if at.tzinfo is None:
        raise Invalid(
            f"{text!r} has no time zone; append Z for UTC, or an offset such as +02:00.",
            field=name,
        )
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise Invalid(f"{text!r} is out of range.", field=name) from None


class TimestampField(serializers.DateTimeField):
    """Accepts only timestamps with a time zone; the framework's field would assume one."""

    def to_internal_value(self, value: Any) -> datetime:
        if not isinstance(value, str):
            raise serializers.ValidationError(f"Expected an ISO 8601 timestamp, such as {EXAMPLE}.")
        try:
            return parse_timestamp(value, "")
        except Invalid as error:
            raise serializers.ValidationError(error.message.removeprefix(": ")) from None
