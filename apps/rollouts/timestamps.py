"""Instants as people send them: with a time zone, since 14:05 alone is another time elsewhere."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rest_framework import serializers

from apps.lib.errors import Invalid

EXAMPLE = "2026-11-25T14:05:00Z"


def read_instant(text: str, name: str) -> datetime:
    """Return the instant that `text` says in ISO 8601. Raises Invalid, which names the field."""
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise Invalid(
            f"{name}: {text!r} is not a valid ISO 8601 timestamp, such as {EXAMPLE} "
            "(in a URL a + is written %2B)."
        ) from None
    if at.tzinfo is None:
        raise Invalid(f"{name}: {text!r} names no time zone; end it with Z for UTC, or +02:00.")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise Invalid(f"{name}: {text!r} lies outside of the calendar.") from None


class InstantField(serializers.DateTimeField):
    """Takes instants with a time zone only, where the framework's field assumes one."""

    def to_internal_value(self, value: Any) -> datetime:
        if not isinstance(value, str):
            raise serializers.ValidationError(f"Give text in ISO 8601, such as {EXAMPLE}.")
        try:
            return read_instant(value, "")
        except Invalid as error:
            raise serializers.ValidationError(error.message.removeprefix(": ")) from None
