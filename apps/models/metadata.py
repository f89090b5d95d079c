"""Metadata of a manually registered version, with its limits. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from apps.lib.errors import Invalid

ENTRIES_MAX = 1_000
# The limits of MLflow.
KEY_LENGTH_MAX = 250
VALUE_LENGTH_MAX = 6_000
DESCRIPTION_LENGTH_MAX = 10_000
TAG_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,49}")


@dataclass(frozen=True)
class Metadata:
    """Metadata that was sent with a version; None for missing fields."""

    metrics: Any = None
    parameters: Any = None
    dataset_digest: str | None = None
    semantic_tag: str | None = None
    description: str | None = None
    run_url: str | None = None
    # Warm-up requests; they are checked against the signature later.
    warmup: Any = None

    def facts(self) -> dict[str, Any]:
        """Return the fields that were sent as columns of a version, without the warm-up.

        Raises:
            Invalid: a value is not valid; the message names the field.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        sent = {k: v for k, v in values.items() if v is not None and k != "warmup"}
        return {name: CHECKS[name](name, value) for name, value in sent.items()}


def _metrics(field: str, value: Any) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, number in _entries(field, value).items():
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or abs(number) > 1e308 or not math.isfinite(number):
            raise Invalid(f"{name!r} is not a finite number.", field=field)
        numbers[name] = float(number)
    return numbers


def _parameters(field: str, value: Any) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name, item in _entries(field, value).items():
        if isinstance(item, dict | list):
            raise Invalid(f"{name!r} is not text or a number.", field=field)
        texts[name] = _text(f"{field}: {name!r}", str(item), VALUE_LENGTH_MAX)
    return texts


def _entries(field: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Invalid("expected an object of names and values.", field=field)
    if len(value) > ENTRIES_MAX:
        raise Invalid(f"{len(value):,} entries; the maximum is {ENTRIES_MAX:,}.", field=field)
    for name in value:
        if not name or len(name) > KEY_LENGTH_MAX or not name.isprintable():
            raise Invalid(f"a name has 1 to {KEY_LENGTH_MAX} printable characters.", field=field)
    return value


def _text(field: str, value: str, length_max: int) -> str:
    if len(value) > length_max or "\x00" in value:
        raise Invalid(f"at most {length_max:,} characters, without NUL.", field=field)
    return value


def _digest(field: str, value: str) -> str:
    return _text(field, value.strip(), 200)


def _description(field: str, value: str) -> str:
    return _text(field, value.strip(), DESCRIPTION_LENGTH_MAX)


def _tag(field: str, value: str) -> str:
    if value and not TAG_PATTERN.fullmatch(value):
        raise Invalid(
            f"{value[:60]!r} is not a valid semantic tag. Example: v1.2.3; at most 50 "
            "letters, digits, dots, dashes, plus signs and underscores.",
            field=field,
        )
    return value


def _url(field: str, value: str) -> str:
    value = _text(field, value.strip(), 1_000)
    try:
        parts = urlsplit(value)
    except ValueError as error:
        raise Invalid(f"{value[:60]!r} is not a valid URL: {error}.", field=field) from error
    if value and (parts.scheme not in {"http", "https"} or not parts.hostname):
        raise Invalid(f"{value[:60]!r} is not a valid http: or https: URL.", field=field)
    return value


CHECKS = {
    "metrics": _metrics,
    "parameters": _parameters,
    "dataset_digest": _digest,
    "semantic_tag": _tag,
    "description": _description,
    "run_url": _url,
}
