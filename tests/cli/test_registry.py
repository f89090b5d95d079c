"""`interlock models` and `versions`: lists, and actions on one model or version."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from cli import main as cli
from cli.client import Client

ROW = {
    "name": "digits", "number": 3, "state": "archived", "aliases": [], "deployments": [],
    "stable": None, "previous_stable": None, "description": "", "semantic_tag": "",
    "created_at": "2026-01-01",
}  # fmt: skip


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    monkeypatch.setenv("INTERLOCK_TOKEN", "t")
    received: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        received.append(request)
        if request.method == "GET":
            return httpx.Response(200, json={"results": [ROW], "next": None})
        return httpx.Response(200, json=ROW)

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(cli, "Client", lambda u, t: Client(u, t, transport=transport))
    return received


@pytest.mark.parametrize(
    ("words", "method", "path"),
    [
        ("versions undeploy digits 3", "POST", "models/digits/versions/3/undeploy/"),
        ("versions archive digits 3", "POST", "models/digits/versions/3/archive/"),
        ("versions restore digits 3", "POST", "models/digits/versions/3/restore/"),
        ("versions delete digits 3", "DELETE", "models/digits/versions/3/"),
        ("models undeploy digits", "POST", "models/digits/undeploy/"),
        ("models archive digits", "POST", "models/digits/archive/"),
        ("models restore digits", "POST", "models/digits/restore/"),
        ("models delete digits", "DELETE", "models/digits/"),
        ("models", "GET", "models/"),
        ("versions archive", "GET", "models/archive/versions/"),
    ],
)
def test_each_action_sends_its_request(
    requests: list[httpx.Request], words: str, method: str, path: str
) -> None:
    assert cli.main(words.split()) == 0
    assert (requests[-1].method, requests[-1].url.path) == (method, f"/api/v1/{path}")


def test_the_reason_is_sent_and_the_new_state_printed(
    requests: list[httpx.Request], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["versions", "archive", "digits", "3", "--reason", "old"]) == 0
    body: Any = json.loads(requests[-1].content)
    assert body == {"reason": "old"}
    assert capsys.readouterr().out == "digits:3 is archived\n"


def test_archived_versions_are_listed_with_the_option(
    requests: list[httpx.Request], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["versions", "digits", "--archived"]) == 0
    assert requests[-1].url.params["archived"] == "true"
    assert "archived" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["models delete", "versions", "versions delete digits x"])
def test_wrong_arguments_print_the_usage(
    requests: list[httpx.Request], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) == 2
    assert "undeploy, archive, restore, delete" in capsys.readouterr().err
    assert not requests
