"""One whole stack for all fault tests; it is healthy at the start of each test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from embedded.stack import running
from tests.faults.ground import PARTS, SETTINGS, Ground


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="package")
def shared() -> Iterator[Ground]:
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="interlock-faults-") as directory,
    ):
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        with running(Path(directory), only=PARTS) as stack:
            ground = Ground(stack)
            with closing(ground.control):
                yield ground


@pytest.fixture
def ground(shared: Ground) -> Ground:
    """Return the stack after it has recovered from the previous test."""
    shared.settle()
    return shared
