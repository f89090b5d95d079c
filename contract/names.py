"""What a model may be called: a name that stands in paths of both planes as it is."""

from __future__ import annotations

import re

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
NAME_RULE = "at most 100 letters, digits, dots, dashes and underscores, a letter or digit first"
# Addresses below `models/` that are no model's: the data plane's statistics, the control plane's
# import from the registry.
RESERVED_MODEL_NAMES = frozenset({"stats", "sync"})
_NAME = re.compile(NAME_PATTERN)


def is_name(text: str) -> bool:
    """Return whether the whole of `text` is a name; a line feed at its end makes it none."""
    return _NAME.fullmatch(text) is not None


def model_name_fault(name: str) -> str | None:
    """Say why a model cannot have that name, None where it can."""
    if not is_name(name):
        return f"a model's name has {NAME_RULE}"
    if name in RESERVED_MODEL_NAMES:
        return "this name is the address of something else"
    return None
