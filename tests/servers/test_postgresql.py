"""PostgreSQL with TLS, on several hosts, demoted, behind a pool or PgBouncer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import DatabaseError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

from apps.models import locks
from apps.models.locks import try_lock
from embedded.stack import Stack, running
from tests.servers.certificates import make_files
from tests.servers.postgresql import PGBOUNCER, alter, django_session, pgbouncer, query_one

pytestmark = pytest.mark.django_db

PORT = "SELECT current_setting('port')"
TLS = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
PID = "SELECT pg_backend_pid()"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("one"), only={"postgres"}) as stack:
        yield stack


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("two"), only={"postgres"}) as stack:
        yield stack


def port_of(stack: Stack) -> str:
    return str(urlsplit(stack.database_url).port)


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encrypted(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enable TLS for `localhost` on the server; return the directory of its authority."""
    data = Path(stack.state_dir) / "postgres"
    files = make_files(data, "server")
    owner = data.stat()
    for path in (files.certificate, files.key):
        os.chown(path, owner.st_uid, owner.st_gid)
    alter(stack, ssl_cert_file="server.crt", ssl_key_file="server.key", ssl="on")
    make_files(data, "other")
    return data


def tls_url(stack: Stack, host: str, authority: Path) -> str:
    url = urlsplit(stack.database_url)
    at = f"{url.username}:{url.password}@{host}:{url.port}"
    return f"postgresql://{at}/interlock?sslmode=verify-full&sslrootcert={authority}"


def test_a_server_of_the_right_authority_is_used_with_tls(stack: Stack, encrypted: Path) -> None:
    with django_session(tls_url(stack, "localhost", encrypted / "server.ca")) as session:
        assert query_one(session, TLS) is True


@pytest.mark.parametrize(
    ("host", "authority", "reason"),
    [
        ("localhost", "other.ca", "certificate verify failed"),
        ("127.0.0.1", "server.ca", "does not match host name"),
    ],
)
def test_a_server_that_cannot_be_verified_is_refused(
    stack: Stack, encrypted: Path, host: str, authority: str, reason: str
) -> None:
    with (
        django_session(tls_url(stack, host, encrypted / authority)) as session,
        pytest.raises(OperationalError, match=reason),
    ):
        query_one(session, TLS)


# --- several hosts, and a demotion ---------------------------------------------------------------


def url_of_both(stack: Stack, other: Stack, query: str) -> str:
    """Return a URL of both servers, with the password of the first one."""
    one, two = urlsplit(stack.database_url), urlsplit(other.database_url)
    return (
        f"postgresql://{one.username}:{one.password}@127.0.0.1:{one.port},127.0.0.1:{two.port}"
        f"/interlock?{query}"
    )


@pytest.fixture
def both(stack: Stack, other: Stack) -> Iterator[str]:
    """Return a URL of two hosts that requires the primary; afterwards both are writable again."""
    password = urlsplit(stack.database_url).password
    with django_session(other.database_url) as session, session.cursor() as cursor:
        before = urlsplit(other.database_url).password
        cursor.execute(f"ALTER ROLE interlock PASSWORD '{password}'")
        yield url_of_both(stack, other, "target_session_attrs=read-write")
        cursor.execute(f"ALTER ROLE interlock PASSWORD '{before}'")
    alter(stack, default_transaction_read_only="off")


def test_the_first_writable_host_is_used(stack: Stack, other: Stack, both: str) -> None:
    with django_session(both) as session:
        assert query_one(session, PORT) == port_of(stack)
    alter(stack, default_transaction_read_only="on")
    with django_session(both) as session:
        assert query_one(session, PORT) == port_of(other)


def write(session: BaseDatabaseWrapper) -> str:
    """Write a row, as a request would; return the port of the server."""
    try:
        with session.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS written (n int)")
            cursor.execute("INSERT INTO written VALUES (1)")
        return str(query_one(session, PORT))
    finally:
        session.close()


POOL = {"pool": {"min_size": 1, "max_size": 2}}


@pytest.mark.parametrize("options", [{}, POOL], ids=["plain", "pool"])
def test_after_a_demotion_one_request_fails_and_the_next_finds_the_primary(
    stack: Stack, other: Stack, both: str, options: dict[str, Any]
) -> None:
    with django_session(both, **options) as session:
        assert write(session) == port_of(stack)
        alter(stack, default_transaction_read_only="on")
        if options:
            with pytest.raises(DatabaseError, match="read-only"):
                write(session)
        for _ in range(3):
            assert write(session) == port_of(other)


# --- a pool --------------------------------------------------------------------------------------


def test_a_pool_reuses_a_session_unless_it_failed(stack: Stack) -> None:
    with django_session(stack.database_url, pool={"min_size": 1, "max_size": 1}) as session:
        first = query_one(session, PID)
        session.close()
        assert query_one(session, PID) == first
        with pytest.raises(DatabaseError):
            query_one(session, "SELECT 1 / 0 FROM nowhere")
        session.close()
        assert query_one(session, PID) != first


# --- locks ---------------------------------------------------------------------------------------


def test_only_one_holder_has_the_lock() -> None:
    with try_lock(77) as mine:
        assert mine
        with try_lock(77) as theirs, try_lock(78) as another:
            assert (theirs, another) == (False, True)
    with try_lock(77) as mine:
        assert mine


def test_only_one_holder_has_the_lock_behind_pgbouncer(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if PGBOUNCER is None:
        return
    with (
        pgbouncer(stack, tmp_path_factory.mktemp("bouncer")) as url,
        django_session(url) as session,
    ):
        monkeypatch.setattr(locks, "connection", session)
        for _ in range(3):
            with try_lock(77) as mine:
                assert mine
                # Other statements meanwhile use the same few server connections.
                assert query_one(session, "SELECT 1") == 1
                with try_lock(77) as theirs:
                    assert not theirs
