"""The control plane's own sessions: one that something in between forgot ends in seconds."""

from __future__ import annotations

import os
import socket

import psycopg
import pytest
from celery import Celery
from django.conf import settings
from django.db import connection

from controlplane import env


def options_of(fileno: int) -> tuple[int, int, int, int]:
    with socket.socket(fileno=os.dup(fileno)) as copy:
        return (
            copy.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
        )


@pytest.mark.django_db
def test_a_session_of_postgresql_is_probed_and_what_is_sent_has_a_limit() -> None:
    connection.ensure_connection()
    used = connection.settings_dict
    info = {part: used[name] for name, part in env.DATABASE_PARTS.items()}
    with psycopg.connect(**info, **env.PROBED) as session:
        assert options_of(session.fileno()) == (1, env.FORGOTTEN_S, env.PROBE_S, env.PROBES_MAX)
        with socket.socket(fileno=os.dup(session.fileno())) as copy:
            limit_ms = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert limit_ms == env.FORGOTTEN_S * 1_000


def test_what_a_url_says_of_probes_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://db/interlock?keepalives_idle=600")
    options = env.database("DATABASE_URL", "")["OPTIONS"]
    assert isinstance(options, dict)
    assert options == {**env.PROBED, "keepalives_idle": "600"}


@pytest.mark.usefixtures("servers")
def test_celerys_connections_are_probed() -> None:
    app = Celery("probed", fixups=[], broker=settings.REDIS_URL, set_as_current=False)
    app.conf.broker_transport_options = env.broker_options(settings.REDIS_URL)
    with app.connection_for_read() as broker:
        client = broker.default_channel.client
        client.ping()
        used = client.connection_pool.get_connection()
        assert options_of(used._sock.fileno())[:2] == (1, env.FORGOTTEN_S)
    app.close()
