"""Checks with settings as text: one JSON document a line, and what is wrong with which line."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from django.core.exceptions import ValidationError

from apps.rollouts.check_kinds import CheckDocument, problem_of_check, read_check

EXAMPLE = '{"check": "error-objective", "settings": {"limit_bp": 200}}'

_check = msgspec.json.Decoder(str | CheckDocument)


def read_lines(text: str) -> list[str | CheckDocument]:
    """Return the checks of `text`, empty lines left out.

    Raises:
        ValidationError: has a message for each line that is no check, with its number.
    """
    found, problems = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(_read(line))
        except ValueError as error:
            problems.append(f"Line {number}: {error}")
    if problems:
        raise ValidationError(problems)
    return found


def _read(line: str) -> str | CheckDocument:
    """Return the check of one line. Raises ValueError in words."""
    if not line.lstrip().startswith(("{", '"')):
        raise ValueError(f"each line is one document, such as {EXAMPLE}")
    try:
        check: str | CheckDocument = _check.decode(line)
    except msgspec.ValidationError as error:
        raise ValueError(f"{_in_words(error)}.") from None
    except msgspec.DecodeError as error:
        raise ValueError(f"this is no JSON document: {error}.") from None
    if problem := problem_of_check(read_check(check)):
        raise ValueError(f"{problem}.")
    return check


def _in_words(error: msgspec.ValidationError) -> str:
    """`Expected `str`, got `int` - at `$.name`` → `name: Expected `str`, got `int``."""
    told, _, where = str(error).partition(" - at `$")
    field = where.rstrip("`").lstrip(".")
    return f"{field}: {told}" if field else told


def to_lines(checks: Sequence[str | CheckDocument]) -> str:
    """Return the text that `read_lines` makes the same checks of."""
    return "\n".join(msgspec.json.encode(_shortened(check)).decode() for check in checks)


def _shortened(check: str | CheckDocument) -> object:
    if isinstance(check, str):
        return check
    given = msgspec.to_builtins(check)
    return {name: value for name, value in given.items() if value not in (None, {}, "")}
