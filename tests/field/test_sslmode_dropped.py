"""All parameters of a database URL reach libpq: requested TLS is used or is an error."""

from __future__ import annotations

import ssl

import psycopg
import pytest
from django.db import connection

from controlplane import env
from controlplane.env import SettingError


def database(monkeypatch: pytest.MonkeyPatch, url: str) -> dict[str, object]:
    monkeypatch.setenv("DATABASE_URL", url)
    return env.database("DATABASE_URL", "")


@pytest.mark.django_db
@pytest.mark.parametrize("query", ["sslmode=require", "sslmode=verify-full&sslrootcert=system"])
def test_a_server_without_tls_is_refused(monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    used = connection.settings_dict
    server = f"{used['USER']}:{used['PASSWORD']}@{used['HOST']}:{used['PORT']}"
    wrapper = connection.copy()
    options = database(monkeypatch, f"postgresql://{server}/{used['NAME']}?{query}")
    wrapper.settings_dict = {**used, **options}

    with pytest.raises(psycopg.OperationalError, match="does not support SSL"):
        wrapper.connect()


def test_each_part_of_a_url_is_parsed_as_by_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    options = database(
        monkeypatch,
        "postgresql://u%40x:p%2Fw@db:5432/na%20me?sslmode=verify-full&sslrootcert=/ca.pem",
    )
    assert options == {
        "ENGINE": "controlplane.postgresql",
        "NAME": "na me", "USER": "u@x", "PASSWORD": "p/w", "HOST": "db", "PORT": "5432",
        "OPTIONS": {**env.PROBED, "sslmode": "verify-full", "sslrootcert": "/ca.pem"},
    }  # fmt: skip
    socket = database(monkeypatch, "postgresql:///interlock?host=/run/postgresql")
    assert (socket["HOST"], socket["PORT"]) == ("/run/postgresql", "")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://db/interlock?sslmod=require", "invalid URI query parameter: .sslmod"),
        ("postgresql://db", "not of the form"),
        ("mysql://db/interlock", "missing .=. after|not of the form"),
        ("host=db dbname=interlock", "not of the form"),
    ],
)
def test_an_unknown_parameter_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, problem: str
) -> None:
    with pytest.raises(SettingError, match=problem) as error:
        database(monkeypatch, url)
    assert "DATABASE_URL" in str(error.value)


def test_celery_verifies_the_server_of_an_encrypted_broker() -> None:
    options = env.broker_tls("rediss://:secret@redis:6379/0")
    assert options is not None
    assert options["ssl_cert_reqs"] == ssl.CERT_REQUIRED
    assert env.broker_tls("redis://redis:6379/0") is None
    assert env.broker_tls("rediss://redis:6379/0?ssl_cert_reqs=required") is None
