"""The requests of the commands that start, change and roll back a rollout."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from cli import main as cli
from cli.client import Client

Requests = list[tuple[str, str, Any]]
ROW = {
    "id": "r1",
    "model": "digits",
    "target": 2,
    "phase": "pending",
    "is_live": True,
    "weight_bp": 0,
    "revision": 1,
    "reason": "because",
}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    """Respond to every request with a rollout; return the requests."""
    received: Requests = []
    monkeypatch.setenv("INTERLOCK_TOKEN", "t")

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        received.append((request.method, request.url.path.removeprefix("/api/v1/"), body))
        return httpx.Response(201, json=ROW)

    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(cli, "Client", lambda u, t: Client(u, t, transport=transport))
    return received


def test_promote_names_each_override(requests: Requests) -> None:
    words = ["promote", "digits", "2", "--override", "quarantine", "--override", "freeze"]

    assert cli.main(words) == 0

    body = {"model": "digits", "version": "2", "plan": None, "overrides": ["quarantine", "freeze"]}
    assert requests == [("POST", "rollouts/", body)]


@pytest.mark.parametrize(
    ("command", "verb"), [("skip", "skip"), ("approve", "approve"), ("finish", "promote")]
)
def test_an_action_sends_its_reason(requests: Requests, command: str, verb: str) -> None:
    assert cli.main([command, "r1", "--reason", "seen enough"]) == 0
    assert requests == [("POST", f"rollouts/r1/{verb}/", {"reason": "seen enough"})]


def test_a_retry_may_override(requests: Requests) -> None:
    assert cli.main(["retry", "r1", "--override", "quarantine"]) == 0
    assert requests == [("POST", "rollouts/r1/retry/", {"overrides": ["quarantine"]})]


@pytest.mark.parametrize(("words", "version"), [([], None), (["--to", "3"], "3")])
def test_a_rollback_may_name_the_version(
    requests: Requests, words: list[str], version: str | None
) -> None:
    assert cli.main(["rollback", "digits", *words]) == 0
    body = {"reason": "", "version": version, "overrides": []}
    assert requests == [("POST", "rollbacks/digits/start/", body)]


def test_a_started_rollout_is_printed(
    requests: Requests, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["retry", "r1"])
    assert capsys.readouterr().out.splitlines() == [
        "rollout r1",
        "digits:2 pending at 0 %: because",
    ]


TIME = {
    "period": "the last day",
    "rate": "3 requests per hour",
    "summary": "it would pause for a person in step 1",
    "steps": [{"number": 1, "weight_bp": 500, "summary": "about 280 days"}],
}


@pytest.mark.parametrize(
    ("times", "output"),
    [([TIME], "plan careful, 3 requests per hour (the last day): it would"), ([], "no traffic")],
)
def test_a_dry_run_starts_nothing_and_prints_the_durations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], times: Any, output: str
) -> None:
    monkeypatch.setenv("INTERLOCK_TOKEN", "t")
    calls: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        calls.append(f"{request.method} {request.url.raw_path.decode()}")
        return httpx.Response(200, json=times)

    transport = httpx.MockTransport(respond)
    monkeypatch.setattr(cli, "Client", lambda u, t: Client(u, t, transport=transport))
    assert cli.main(["promote", "digits", "2", "--plan", "careful", "--dry-run"]) == 0
    assert calls == ["GET /api/v1/plans/careful/times/?model=digits"]
    assert output in capsys.readouterr().out
