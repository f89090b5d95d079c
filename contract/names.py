"""The rule for model names, which both planes use in URL paths without escaping."""

from __future__ import annotations

import re

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
NAME_RULE = "at most 100 letters, digits, dots, dashes and underscores, a letter or digit first"
# Paths below `models/` that are no models: the statistics of the data plane and the registry import
# of the control plane.
RESERVED_MODEL_NAMES = frozenset({"stats", "sync"})
_NAME = re.compile(NAME_PATTERN)


def is_name(text: str) -> bool:
    """Return whether all of `text` is a valid name; a trailing line feed makes it invalid."""
    return _NAME.fullmatch(text) is not None


def model_name_fault(name: str) -> str | None:
    """Return why `name` is not a valid model name, or None if it is valid."""
    if not is_name(name):
        return f"a model name must have {NAME_RULE}"
    if name in RESERVED_MODEL_NAMES:
        return "this name is reserved"
    return None
