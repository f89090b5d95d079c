from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.notifications.receivers import Endpoint, listening


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with listening() as running:
        yield running
