"""`interlock health` and `--wait` report stopped loops of the control plane."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from cli import main as cli
from cli import waiting
from cli.client import Client

TICK = {
    "name": "tick",
    "turned_by": "rollouts.tick",
    "age_s": 61.0,
    "late_after_s": 30.0,
    "is_late": True,
    "without_it": "no rollout moves",
}
ROLLOUT = {
    "id": "r1",
    "model": "digits",
    "target": 2,
    "phase": "baking",
    "is_live": True,
    "weight_bp": 500,
    "revision": 1,
    "reason": "2 s left",
}


def serve(monkeypatch: pytest.MonkeyPatch, *, is_well: bool) -> None:
    loops = [TICK | {"is_late": not is_well}]
    status = {"is_well": is_well, "trouble": "", "published_age_s": 5.0, "loops": loops}

    def answer(request: httpx.Request) -> httpx.Response:
        is_status = request.url.path.endswith("/status/")
        return httpx.Response(200, json=status if is_status else ROLLOUT)

    monkeypatch.setenv("INTERLOCK_TOKEN", "t")
    transport = httpx.MockTransport(answer)
    monkeypatch.setattr(cli, "Client", lambda u, t: Client(u, t, transport=transport))


@pytest.mark.parametrize(("is_well", "code", "word"), [(True, 0, "turns"), (False, 1, "STOPPED")])
def test_health_exits_1_if_a_loop_has_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, is_well: bool, code: int, word: str
) -> None:
    serve(monkeypatch, is_well=is_well)
    assert cli.main(["health"]) == code
    assert word in capsys.readouterr().out


def test_a_wait_reports_a_stopped_loop_once(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    serve(monkeypatch, is_well=False)
    monkeypatch.setattr(waiting, "STATUS_EVERY_S", 0.0)
    monkeypatch.setattr(waiting, "POLL_S", 0.02)
    assert cli.main(["promote", "digits", "2", "--wait", "--timeout", "0.3"]) == 4
    err = capsys.readouterr().err
    assert err.count("have stopped: rollouts.tick: no rollout moves") == 1
