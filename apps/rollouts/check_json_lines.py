"""Reads and writes checks as text, one JSON document a line, with errors by line."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from django.core.exceptions import ValidationError

from apps.rollouts.check_kinds import CheckDocument, problem_of_check, read_check

EXAMPLE = '{"check": "error-objective", "settings": {"limit_bp": 200}}'

_check = msgspec.json.Decoder(str | CheckDocument)


def read_lines(text: str) -> list[str | CheckDocument]:
    """Return the checks in `text`; empty lines are skipped.

    Raises:
        ValidationError: a message for each invalid line, with its number.
    """
    checks, problems = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            checks.append(_read(line))
        except ValueError as error:
            problems.append(f"Line {number}: {error}")
    if problems:
        raise ValidationError(problems)
    return checks


def _read(line: str) -> str | CheckDocument:
    """Return the check in one line. Raises ValueError with a message for people."""
    if not line.lstrip().startswith(("{", '"')):
        raise ValueError(f"expected one JSON document, such as {EXAMPLE}")
    try:
        check: str | CheckDocument = _check.decode(line)
    except msgspec.ValidationError as error:
        raise ValueError(f"{_field_first(error)}.") from None
    except msgspec.DecodeError as error:
        raise ValueError(f"not a valid JSON document: {error}.") from None
    if problem := problem_of_check(read_check(check)):
        raise ValueError(f"{problem}.")
    return check


def _field_first(error: msgspec.ValidationError) -> str:
    """`Expected `str`, got `int` - at `$.name`` → `name: Expected `str`, got `int``."""
    message, _, path = str(error).partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    return f"{field}: {message}" if field else message


def to_lines(checks: Sequence[str | CheckDocument]) -> str:
    """Return the checks as text; `read_lines` returns the same checks."""
    return "\n".join(msgspec.json.encode(_shortened(check)).decode() for check in checks)


def _shortened(check: str | CheckDocument) -> object:
    if isinstance(check, str):
        return check
    document = msgspec.to_builtins(check)
    return {name: value for name, value in document.items() if value not in (None, {}, "")}
