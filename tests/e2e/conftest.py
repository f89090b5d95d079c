"""One whole stack for all end-to-end tests, with real servers and all Interlock processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded.stack import Stack, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    with (
        tempfile.TemporaryDirectory(prefix="interlock-e2e-") as directory,
        running(Path(directory)) as running_stack,
    ):
        yield running_stack
