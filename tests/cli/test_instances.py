"""`interlock instances`: its requests; a token is printed alone on stdout."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from cli import main as cli
from cli.client import Client

TOKEN = {
    "id": 7,
    "instance": "edge",
    "hint": "wxyz",
    "state": "active",
    "created_at": "2026-11-24T10:00:00Z",
    "created_by": "anna",
    "last_used_at": None,
    "expires_at": None,
}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    """Return the requests to a control plane that responds with a token."""
    monkeypatch.setenv("INTERLOCK_TOKEN", "t")
    requests: list[tuple[str, str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        requests.append((request.method, request.url.path.removeprefix("/api/v1/"), body))
        if request.method == "GET":
            return httpx.Response(200, json={"results": [TOKEN], "next": None})
        return httpx.Response(201, json={**TOKEN, "token": "ilinst_secret"})

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(cli, "Client", lambda u, t: Client(u, t, transport=transport))
    return requests


@pytest.mark.parametrize(
    ("words", "method", "path", "body"),
    [
        ("issue edge", "POST", "instance-tokens/", {"instance": "edge"}),
        (
            "rotate edge --overlap-h 0.5",
            "POST",
            "instance-tokens/rotate/",
            {"instance": "edge", "overlap_s": 1_800},
        ),
        ("revoke 7", "POST", "instance-tokens/7/revoke/", {}),
        ("tokens", "GET", "instance-tokens/", {}),
    ],
    ids=["issue", "rotate", "revoke", "tokens"],
)
def test_each_action_sends_its_request(
    sent: list[tuple[str, str, Any]], words: str, method: str, path: str, body: Any
) -> None:
    assert cli.main(["instances", *words.split()]) == 0
    assert sent == [(method, path, body)]


def test_stdout_holds_only_the_token(
    sent: list[tuple[str, str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["instances", "issue", "edge"])
    captured = capsys.readouterr()
    assert captured.out == "ilinst_secret\n"
    assert "not shown again" in captured.err
