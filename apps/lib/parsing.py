"""Parsing of untrusted JSON: bytes, depth and values are bounded before parsing.

Python's parser recurses once for each level and creates an object for each value, so a few
kilobytes of brackets raise a RecursionError, and two megabytes of JSON take a hundred of memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import IO, Any

from django.conf import settings
from rest_framework.parsers import JSONParser

from apps.lib.errors import Invalid, TooLarge

DEPTH_MAX = 64
VALUES_MAX = 100_000
# A string, or a bracket outside of one.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{\]}]', re.DOTALL)


def load_json(text: str, what: str = "The body") -> Any:
    """Parse `text`. Raises Invalid, whose message names `what`, the fault and its position."""
    _check_size(text, what)
    _check_depth(text, what)
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise Invalid(
            f"{what} is not JSON: {error}", line=error.lineno, column=error.colno
        ) from None
    except ValueError as error:
        raise Invalid(f"{what} is not JSON: {error}") from None


class BoundedJSONParser(JSONParser):
    """Parses the body of an API request within the bounds."""

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        """Raises TooLarge, Invalid."""
        bytes_max = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        data = stream.read(bytes_max + 1)
        if len(data) > bytes_max:
            raise TooLarge(f"The body is over {bytes_max} bytes.", bytes_max=bytes_max)
        encoding = (parser_context or {}).get("encoding", settings.DEFAULT_CHARSET)
        try:
            text = data.decode(encoding)
        except (UnicodeDecodeError, LookupError) as error:
            raise Invalid(f"The body is not text: {error}") from None
        return load_json(text)


def _check_size(text: str, what: str) -> None:
    if text.count(",") >= VALUES_MAX or text.count("[") + text.count("{") > VALUES_MAX:
        raise Invalid(f"{what} holds over {VALUES_MAX} values.", values_max=VALUES_MAX)


def _check_depth(text: str, what: str) -> None:
    if text.count("[") + text.count("{") <= DEPTH_MAX:
        return
    depth = 0
    for token in _TOKEN.finditer(text):
        first = text[token.start()]
        if first in "[{":
            depth += 1
            if depth > DEPTH_MAX:
                raise _too_deep(text, what, token.start())
        elif first in "]}":
            depth -= 1


def _too_deep(text: str, what: str, at: int) -> Invalid:
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    return Invalid(
        f"{what} nests lists and objects over {DEPTH_MAX} deep: line {line} column {column}.",
        line=line,
        column=column,
        depth_max=DEPTH_MAX,
    )


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a valid JSON number")
