"""One instance of real processes with a real Redis, and a fake Triton server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.attacks.ground import Ground
from tests.attacks.tenancy import Door, a_door
from tests.dataplane.conftest import Valkey, valkey
from tests.dataplane.groups import a_group, free_port

__all__ = ["valkey"]


@pytest.fixture
async def ground(valkey: Valkey, tmp_path: Path) -> AsyncIterator[Ground]:
    grpc_port = free_port()
    settings = {"INTERLOCK_GRPC_BIND": f"127.0.0.1:{grpc_port}"}
    async with a_group(valkey, tmp_path, workers=1, **settings) as group:
        yield Ground(group, grpc_port)


@pytest.fixture
async def door(valkey: Valkey, tmp_path: Path) -> AsyncIterator[Door]:
    async with a_door(valkey, tmp_path) as item:
        yield item
