"""`interlock notifications`: its requests, its output and the exit code of `test`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from cli import main as cli
from cli import notifications
from cli.client import Client

TARGET: dict[str, Any] = {
    "name": "ops",
    "kind": "webhook",
    "address": "https://x.example/",
    "events": [],
    "model": None,
    "is_active": True,
    "secret": "whsec_abc",
}
DELIVERY = {
    "id": "d-1",
    "target": "ops",
    "event": "test",
    "state": "waiting",
    "attempts": 0,
    "created_at": "2026-11-25T10:00:00Z",
    "last_error": "",
}


class Server:
    """Responds with each of `answers` in turn and records the requests in `sent`."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, Any]] = []
        self.answers: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        path = request.url.path.removeprefix("/api/v1/")
        self.sent.append((request.method, path, body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        is_list = request.method == "GET" and path.count("/") == 1
        rows = {"results": [answer], "next": None}
        return httpx.Response(200, json=rows if is_list else answer)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("INTERLOCK_TOKEN", "t")
    monkeypatch.setattr(notifications, "POLL_S", 0.001)
    server = Server()
    server.answers = [TARGET]
    transport = httpx.MockTransport(server)
    monkeypatch.setattr(cli, "Client", lambda u, t: Client(u, t, transport=transport))
    return server


@pytest.fixture
def read_output(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["list"]])
def test_targets_are_listed(
    server: Server, read_output: Callable[[], str], words: list[str]
) -> None:
    assert cli.main(["notifications", *words]) == 0
    _, row = read_output().splitlines()
    assert row.split() == ["ops", "webhook", "https://x.example/", "all", "all", "True"]


def test_adding_a_webhook_prints_its_secret_alone(
    server: Server, read_output: Callable[[], str]
) -> None:
    words = ["add", "ops", "webhook", "https://x.example/", "--event", "leak.detected"]
    assert cli.main(["notifications", *words]) == 0

    assert read_output() == "whsec_abc\n"
    body = {"name": "ops", "kind": "webhook", "address": "https://x.example/"}
    request = {**body, "events": ["leak.detected"], "model": None}
    assert server.sent == [("POST", "notification-targets/", request)]


@pytest.mark.parametrize("act", ["activate", "deactivate", "rotate"])
def test_a_target_is_acted_on(server: Server, act: str) -> None:
    assert cli.main(["notifications", act, "ops"]) == 0
    assert server.sent == [("POST", f"notification-targets/ops/{act}/", {})]


@pytest.mark.parametrize(
    ("last", "code", "output"),
    [
        ({"state": "delivered"}, 0, "delivered\n"),
        ({"state": "retrying", "last_error": "answered 500"}, 1, "not delivered: answered 500\n"),
    ],
)
def test_test_exits_by_the_delivery(
    server: Server, read_output: Callable[[], str], last: dict[str, str], code: int, output: str
) -> None:
    server.answers = [DELIVERY, DELIVERY, {**DELIVERY, **last}]

    assert cli.main(["notifications", "test", "ops"]) == code
    assert read_output() == output
    assert server.sent[0][:2] == ("POST", "notification-targets/ops/test/")


def test_test_exits_4_if_nothing_is_sent_in_time(server: Server) -> None:
    server.answers = [DELIVERY]
    assert cli.main(["notifications", "test", "ops", "--timeout", "0.05"]) == 4


def test_deliveries_are_listed_and_retried(server: Server, read_output: Callable[[], str]) -> None:
    server.answers = [DELIVERY]
    assert cli.main(["notifications", "deliveries", "--state", "gave_up"]) == 0
    assert "d-1" in read_output()
    assert cli.main(["notifications", "retry", "d-1"]) == 0
    assert server.sent[-1][1] == "notification-deliveries/d-1/retry/"
