from __future__ import annotations

from collections.abc import Iterator

import pytest

from apps.identity import callers


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    """Clear the cache of callers, whose rows exist in one test only."""
    yield
    callers.forget()
