"""Environment variables of notifications."""

from __future__ import annotations

import pytest

from controlplane import env
from controlplane.env import SettingError
from embedded import interlock_parts
from embedded.ports import USUAL_PORTS
from embedded.state import ROOT, generate_secrets


@pytest.mark.parametrize(
    ("url", "host", "port", "login", "tls"),
    [
        ("smtp://mail", "mail", 25, ("", ""), (False, False)),
        ("smtp+starttls://u:p%40ss@mail", "mail", 587, ("u", "p@ss"), (True, False)),
        ("smtps://u:p@mail:4650", "mail", 4650, ("u", "p"), (False, True)),
    ],
)
def test_a_mail_server_is_named_by_a_url(
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    host: str,
    port: int,
    login: tuple[str, str],
    tls: tuple[bool, bool],
) -> None:
    monkeypatch.setenv("X", url)
    server = env.mail_server("X")

    assert (server["host"], server["port"]) == (host, port)
    assert (server["username"], server["password"]) == login
    assert (server["use_tls"], server["use_ssl"]) == tls


def test_without_a_url_there_is_no_mail_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", "")
    assert env.mail_server("X") == {}


@pytest.mark.parametrize("url", ["mail:25", "http://mail", "smtp://", "smtp://mail:x"])
def test_an_invalid_url_of_a_mail_server_is_refused(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("X", url)
    with pytest.raises(SettingError, match="X "):
        env.mail_server("X")


def test_the_embedded_stack_links_to_itself_by_default() -> None:
    secrets = generate_secrets()
    variables = {"INTERLOCK_PUBLIC_URL": "https://interlock.example"}
    default, custom = (
        interlock_parts.environment(base, ROOT, USUAL_PORTS, secrets, "")
        for base in ({}, variables)
    )

    assert default["INTERLOCK_PUBLIC_URL"] == default["INTERLOCK_CONTROL_URL"]
    assert custom["INTERLOCK_PUBLIC_URL"] == "https://interlock.example"
