"""`interlock tenants` and `keys`: requests and output; a key is printed alone on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from cli import main as cli
from cli.client import Client

TENANT = {
    "name": "shop",
    "requests_per_s": 500.0,
    "burst": None,
    "concurrency_max": None,
    "priority": "high",
    "active_keys": 1,
}
KEY = {
    "id": 7,
    "tenant": "shop",
    "name": "web",
    "models": [],
    "hint": "wxyz",
    "created_at": "2026-11-24T10:00:00Z",
    "created_by": "anna",
    "revoked_at": None,
}
Sent = tuple[str, str, dict[str, Any]]


class Server:
    """Responds with `answer` and records the requests in `sent`."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.answer: Any = TENANT

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        path = request.url.path.removeprefix("/api/v1/")
        self.sent.append((request.method, path, body))
        rows = {"results": [self.answer], "next": None}
        return httpx.Response(200, json=rows if request.method == "GET" else self.answer)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("INTERLOCK_TOKEN", "t")
    server = Server()
    transport = httpx.MockTransport(server)
    monkeypatch.setattr(cli, "Client", lambda u, t: Client(u, t, transport=transport))
    return server


@pytest.fixture
def read_output(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: capsys.readouterr().out


def test_tenants_are_listed(server: Server, read_output: Callable[[], str]) -> None:
    assert cli.main(["tenants"]) == 0
    header, row = read_output().splitlines()
    assert header.split()[:2] == ["name", "requests_per_s"]
    assert row.split() == ["shop", "500.0", "-", "-", "high", "1"]


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        (["create", "shop"], ("POST", "tenants/", {"name": "shop"})),
        (
            ["create", "shop", "--requests-per-s", "2.5", "--priority", "low"],
            ("POST", "tenants/", {"name": "shop", "requests_per_s": 2.5, "priority": "low"}),
        ),
        (
            ["set", "shop", "--burst", "none", "--concurrency-max", "64"],
            ("PATCH", "tenants/shop/", {"burst": None, "concurrency_max": 64}),
        ),
        (["delete", "shop"], ("DELETE", "tenants/shop/", {})),
    ],
)
def test_a_tenant_is_changed(server: Server, words: list[str], sent: Sent) -> None:
    assert cli.main(["tenants", *words]) == 0
    assert server.sent == [sent]


def test_a_non_numeric_limit_is_refused(server: Server) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(["tenants", "set", "shop", "--burst", "many"])
    assert (error.value.code, server.sent) == (2, [])


def test_stdout_holds_only_the_new_key(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.answer = {**KEY, "key": "ilapp_secret"}
    assert cli.main(["keys", "create", "shop", "--name", "web"]) == 0
    assert server.sent == [("POST", "tenants/shop/keys/", {"name": "web"})]
    printed = capsys.readouterr()
    assert printed.out == "ilapp_secret\n"
    assert "not shown again" in printed.err


def test_a_key_may_open_some_models(server: Server, read_output: Callable[[], str]) -> None:
    server.answer = {**KEY, "models": ["digits", "words"]}
    words = ["keys", "create", "shop", "--model", "digits", "--model", "words"]
    server.answer["key"] = "ilapp_x"
    assert cli.main(words) == 0
    assert server.sent[0][2]["models"] == ["digits", "words"]
    read_output()
    assert cli.main(["keys", "list", "shop"]) == 0
    assert "digits, words" in read_output()


def test_keys_are_listed_and_revoked(server: Server, read_output: Callable[[], str]) -> None:
    server.answer = KEY
    assert cli.main(["keys", "list", "shop"]) == 0
    assert cli.main(["keys", "revoke", "shop", "7"]) == 0
    assert [path for _, path, _ in server.sent] == [
        "tenants/shop/keys/",
        "tenants/shop/keys/7/revoke/",
    ]
    assert read_output().count("wxyz") == 2


@pytest.mark.parametrize(
    ("answer", "sent"),
    [("yes", {"key_required": True}), ("no", {"key_required": False})],
)
def test_whether_a_key_is_required_is_set(
    server: Server, read_output: Callable[[], str], answer: str, sent: dict[str, bool]
) -> None:
    server.answer = sent
    assert cli.main(["keys", "required", answer]) == 0
    assert server.sent == [("PUT", "serving-policy/", sent)]
    assert read_output() == (
        "An API key is required.\n" if answer == "yes" else "No API key is required.\n"
    )


def test_whether_a_key_is_required_is_printed(
    server: Server, monkeypatch: pytest.MonkeyPatch, read_output: Callable[[], str]
) -> None:
    monkeypatch.setattr(Client, "get", lambda self, path: {"key_required": True})
    assert cli.main(["--json", "keys", "required"]) == 0
    assert json.loads(read_output()) == {"key_required": True}
