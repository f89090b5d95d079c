"""The command line: a verdict is an exit code, an error is one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from cli import main as cli
from cli import waiting
from cli.client import Client

Answer = Callable[[httpx.Request], httpx.Response]


def rollout(phase: str, **fields: Any) -> dict[str, Any]:
    live = phase not in {"succeeded", "rolled_back", "failed"}
    row = {"id": "r1", "model": "digits", "target": 2, "phase": phase, "is_live": live}
    return {**row, "weight_bp": 500, "revision": 1, "reason": "because", **fields}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], None]:
    monkeypatch.setenv("INTERLOCK_TOKEN", "t")
    monkeypatch.setattr(waiting, "POLL_S", 0)

    def install(answer: Answer) -> None:
        transport = httpx.MockTransport(answer)
        monkeypatch.setattr(cli, "Client", lambda u, t: Client(u, t, transport=transport))

    return install


@pytest.mark.parametrize(("ends", "code"), [("succeeded", 0), ("rolled_back", 1), ("failed", 1)])
def test_promote_and_wait_exits_by_the_verdict(
    serve: Callable[[Answer], None], ends: str, code: int
) -> None:
    phases = iter(["baking", ends])

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            assert request.headers["Idempotency-Key"]
            return httpx.Response(201, json=rollout("pending"))
        return httpx.Response(200, json=rollout(next(phases)))

    serve(answer)
    assert cli.main(["promote", "digits", "2", "--wait"]) == code


def test_a_refusal_exits_2_and_prints_the_reason(
    serve: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]
) -> None:
    error = {"error": {"code": "conflict", "message": "already live", "detail": {}}}
    serve(lambda _: httpx.Response(409, json=error))
    assert cli.main(["promote", "digits", "2"]) == 2
    assert "already live (409 conflict)" in capsys.readouterr().err


def test_an_unreachable_server_exits_3(serve: Callable[[Answer], None]) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    serve(answer)
    assert cli.main(["models"]) == 3


def test_a_timeout_exits_4_and_leaves_the_rollout(serve: Callable[[Answer], None]) -> None:
    serve(lambda _: httpx.Response(200, json=rollout("baking")))
    assert cli.main(["promote", "digits", "2", "--wait", "--timeout", "0"]) == 4


def test_without_a_token_it_prints_where_to_create_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("INTERLOCK_TOKEN", raising=False)
    assert cli.main(["models"]) == 2
    assert "Tokens" in capsys.readouterr().err


def test_a_closed_pipe_is_not_an_error(
    serve: Callable[[Answer], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve(lambda request: httpx.Response(200, json={"results": [], "next": None}))
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)

        assert cli.main(["experiment", "list"]) == 0

    assert capsys.readouterr().err == ""
