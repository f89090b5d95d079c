from __future__ import annotations

from collections.abc import Iterator

import pytest

from apps.identity import callers


@pytest.fixture(autouse=True)
def nobody_known() -> Iterator[None]:
    """Leave no caller behind that only this test's rows knew."""
    yield
    callers.forget()
