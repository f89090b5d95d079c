"""The requests of `interlock outcomes`, and its exit codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli import main as cli
from cli import outcomes
from cli.client import Client

DONE: dict[str, Any] = {
    "id": "i1", "filename": "o.csv", "state": "done", "error": "", "rows": 3, "recorded": 2,
    "duplicates": 1, "unexposed": 0, "refused": {},
}  # fmt: skip
REFUSED = {
    "results": [{"row": 3, "event_id": "e", "metric": "m", "reason": "value is not a number"}]
}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.setenv("INTERLOCK_TOKEN", "t")
    monkeypatch.setattr(outcomes, "POLL_S", 0)

    def install(*answers: dict[str, Any]) -> list[str]:
        left, requests = list(answers), []

        def answer(request: httpx.Request) -> httpx.Response:
            request.read()
            requests.append(f"{request.method} {request.url.path.removeprefix('/api/v1/')}")
            return httpx.Response(200, json=left.pop(0))

        transport = httpx.MockTransport(answer)
        monkeypatch.setattr(cli, "Client", lambda u, t: Client(u, t, transport=transport))
        return requests

    return install


@pytest.fixture
def sheet(tmp_path: Path) -> str:
    path = tmp_path / "o.csv"
    path.write_text("event_id\n")
    return str(path)


def test_an_import_is_followed_to_its_last_row(
    serve: Callable[..., list[str]], sheet: str, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = serve(DONE | {"state": "waiting"}, DONE | {"state": "running"}, DONE)

    assert cli.main(["outcomes", "import", sheet, "--wait"]) == 0

    assert requests == ["POST outcome-imports/", *["GET outcome-imports/i1/"] * 2]
    assert "done" in capsys.readouterr().out


def test_refused_rows_are_printed_and_exit_1(
    serve: Callable[..., list[str]], sheet: str, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(DONE | {"refused": {"value is not a number": 1}}, REFUSED)

    assert cli.main(["outcomes", "import", sheet, "--wait"]) == 1

    assert "value is not a number" in capsys.readouterr().out


def test_an_import_that_stopped_early_is_reported(
    serve: Callable[..., list[str]], sheet: str, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(DONE | {"state": "failed", "error": "it is not UTF-8 after row 2"})
    assert cli.main(["outcomes", "import", sheet, "--wait"]) == 1
    assert "not UTF-8 after row 2" in capsys.readouterr().err


def test_a_timeout_exits_4_and_a_missing_file_2(
    serve: Callable[..., list[str]], sheet: str
) -> None:
    serve(DONE | {"state": "running"})
    assert cli.main(["outcomes", "import", sheet, "--wait", "--timeout", "-1"]) == 4
    assert cli.main(["outcomes", "import", f"{sheet}.gone"]) == 2


def test_imports_and_refused_rows_are_listed(
    serve: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    serve({"results": [DONE], "next": None}, REFUSED | {"next": None})
    assert cli.main(["outcomes"]) == 0
    assert cli.main(["outcomes", "refused", "i1"]) == 0
    assert "value is not a number" in capsys.readouterr().out


def test_refused_outcomes_are_listed_by_metric_reason_and_sender(
    serve: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    row = {
        "metric_name": "acuracy", "reason": "unknown metric", "sender": "shop", "via": "dp-1",
        "count": 3, "last_at": "2026-03-01T12:00:00Z",
    }  # fmt: skip
    requests = serve({"results": [row], "next": None}, {"results": [row], "next": None})
    assert cli.main(["outcomes", "refused"]) == 0
    assert cli.main(["outcomes", "refused", "--metric", "acuracy"]) == 0
    assert requests == ["GET outcomes/refused/"] * 2
    assert "unknown metric" in capsys.readouterr().out
