"""Real PostgreSQL and Redis for every test that touches the database, started once per worker.

A developer's own servers may be named by DATABASE_URL and REDIS_URL instead.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from django.conf import settings
from django.db import connections

from controlplane import env
from embedded.stack import running
from tests import fast, sharing

# The duration of an example is not meaningful on a shared machine; other settings are unchanged.
hypothesis.settings.register_profile("shared", hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("shared")

# Settings that make PostgreSQL wait for the disk. These rows need not survive a crash of the
# server; tests that kill a server start their own.
WAITS_FOR_DISK = ("fsync", "synchronous_commit", "full_page_writes")


def pytest_addoption(parser: pytest.Parser) -> None:
    fast.add_option(parser)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return sharing.workers_for(config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> sharing.Sharing:
    return sharing.make_scheduler(config, log)


def pytest_sessionstart(session: pytest.Session) -> None:
    sharing.yield_to_the_first()
    fast.refuse_servers(session.config)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return fast.is_excluded(collection_path, config) or None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    fast.exclude_tests(config, items)
    sharing.put_in_order(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, Any]:
    report = yield
    sharing.record_file(item)
    if report.failed and (section := sharing.files_before(item)):
        report.sections.append(section)
    return report


@pytest.fixture(scope="session")
def servers() -> Iterator[None]:
    """Point Django at real servers; they stop when the worker ends."""
    if sharing.has_external_servers():
        yield
        return
    with (
        tempfile.TemporaryDirectory(prefix="interlock-test-") as directory,
        running(Path(directory), only={"postgres", "redis"}) as stack,
        pytest.MonkeyPatch.context() as patch,
    ):
        disable_disk_writes(stack.database_url)
        patch.setenv("DATABASE_URL", stack.database_url)
        patch.setenv("REDIS_URL", stack.redis_url)
        connections["default"].settings_dict.update(env.database("DATABASE_URL", ""))
        settings.REDIS_URL = stack.redis_url
        yield


def disable_disk_writes(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        for name in WAITS_FOR_DISK:
            connection.execute(f"ALTER SYSTEM SET {name} = off")
        connection.execute("SELECT pg_reload_conf()")


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    servers: None, django_db_modify_db_settings_parallel_suffix: None
) -> None:
    """Hook of pytest-django that runs before it creates the test database."""
