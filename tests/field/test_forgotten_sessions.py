"""A session of the control plane that a middlebox dropped silently ends after seconds."""

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
def test_postgresql_sessions_have_keepalive_and_a_send_timeout() -> None:
    connection.ensure_connection()
    used = connection.settings_dict
    info = {part: used[name] for name, part in env.DATABASE_PARTS.items()}
    with psycopg.connect(**info, **env.PROBED) as session:
        assert options_of(session.fileno()) == (1, env.FORGOTTEN_S, env.PROBE_S, env.PROBES_MAX)
        with socket.socket(fileno=os.dup(session.fileno())) as copy:
            limit_ms = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert limit_ms == env.FORGOTTEN_S * 1_000


def test_keepalive_settings_of_the_url_have_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://db/interlock?keepalives_idle=600")
    options = env.database("DATABASE_URL", "")["OPTIONS"]
    assert isinstance(options, dict)
    assert options == {**env.PROBED, "keepalives_idle": "600"}


@pytest.mark.usefixtures("servers")
def test_celery_connections_have_keepalive() -> None:
    app = Celery("probed", fixups=[], broker=settings.REDIS_URL, set_as_current=False)
    app.conf.broker_transport_options = env.broker_options(settings.REDIS_URL)
    with app.connection_for_read() as broker:
        client = broker.default_channel.client
        client.ping()
        used = client.connection_pool.get_connection()
        assert options_of(used._sock.fileno())[:2] == (1, env.FORGOTTEN_S)
    app.close()
