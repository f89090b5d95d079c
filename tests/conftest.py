"""Real PostgreSQL and Redis for every test that touches the database, started once for the run.

A developer's own servers may be named by DATABASE_URL and REDIS_URL instead.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connections

from controlplane import env
from embedded.stack import running


@pytest.fixture(scope="session")
def servers() -> Iterator[None]:
    """Point Django at real servers; they stop when the run ends."""
    if "DATABASE_URL" in os.environ and "REDIS_URL" in os.environ:
        yield
        return
    with (
        tempfile.TemporaryDirectory(prefix="interlock-test-") as directory,
        running(Path(directory), only={"postgres", "redis"}) as stack,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("DATABASE_URL", stack.database_url)
        patch.setenv("REDIS_URL", stack.redis_url)
        connections["default"].settings_dict.update(env.database("DATABASE_URL", ""))
        settings.REDIS_URL = stack.redis_url
        yield


@pytest.fixture(scope="session")
def django_db_modify_db_settings(servers: None) -> None:
    """pytest-django's hook: runs before it makes the test database."""
