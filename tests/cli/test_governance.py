"""The commands against the real API in this process: the API accepts their requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User
from django.test import Client as Server

from apps.lib.clock import database_now
from apps.rollouts.models import FreezeWindow, Instance, Plan, Quarantine, Release, Rollout
from apps.rollouts.publication import publish_table
from cli import main as cli
from cli.client import Client
from controlplane.models import ApiToken
from tests.rollouts.factories import ANNA, make_baking, make_instance, make_model, make_plan

pytestmark = pytest.mark.django_db
Run = Callable[..., int]


def forward(request: httpx.Request) -> httpx.Response:
    """Send the request to the real API in this process."""
    answer = Server().generic(
        request.method,
        request.url.raw_path.decode(),
        request.content,
        content_type=request.headers.get("Content-Type", ""),
        headers={"Authorization": request.headers["Authorization"]},
    )
    return httpx.Response(answer.status_code, content=answer.content)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs one command as a superuser and returns its exit code."""
    user = User.objects.create_superuser("root")
    _, secret = ApiToken.issue(user_id=user.pk, name="ci")
    monkeypatch.setenv("INTERLOCK_TOKEN", secret)
    transport = httpx.MockTransport(forward)
    monkeypatch.setattr(cli, "Client", lambda u, t: Client(u, t, transport=transport))
    return lambda *words: cli.main(words)


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_freeze_is_added_listed_and_ended(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    make_model()
    until = (database_now() + timedelta(hours=1)).isoformat()
    add = ("freeze", "add", "--model", "digits", "--reason", "holidays", "--until", until)

    assert run(*add) == 0
    assert run("freeze", "list", "--model", "digits") == 0
    assert "holidays" in capsys.readouterr().out.splitlines()[-1]
    assert run("freeze", "end", str(FreezeWindow.objects.get().pk)) == 0
    assert run("freeze") == 0
    assert FreezeWindow.objects.get().ends_at <= database_now()


def test_a_time_without_a_zone_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("freeze", "add", "--reason", "x", "--until", "2026-12-24T18:00:00") == 2
    assert "time zone" in capsys.readouterr().err


def test_a_quarantine_is_listed_and_lifted(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    version = make_model().versions.get(number=2)
    Quarantine.objects.create(version=version, reason="3 % errors", at=database_now())

    assert run("quarantine") == 0
    assert "3 % errors" in capsys.readouterr().out
    assert run("quarantine", "lift", "digits", "2", "--reason", "fixed") == 0
    assert not Quarantine.objects.exists()


def test_the_limit_is_printed_and_set(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["2"], ["none"]):
        assert run("limit", *words) == 0
    assert [line.partition(" rollouts")[0] for line in capsys.readouterr().out.splitlines()] == [
        "Any number of",
        "At most 2",
        "Any number of",
    ]


def test_a_silent_instance_is_forgotten_and_a_live_one_is_not(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    make_instance("i/1")
    make_instance("gone", reported_at=database_now() - timedelta(minutes=5))

    assert run("instances") == 0
    assert "gone" in capsys.readouterr().out
    assert (run("instances", "forget", "gone"), run("instances", "forget", "gone")) == (0, 2)
    assert list(Instance.objects.values_list("name", flat=True)) == ["i/1"]


def test_a_plan_is_shown_edited_and_saved(
    run: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_plan()
    assert run("plans", "show", "canary") == 0
    plan = printed(capsys)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({**plan, "margin_bp": 50}))
    assert run("plans", "save", str(file)) == 0
    monkeypatch.setattr(
        "sys.stdin", StringIO(json.dumps({**plan, "name": "copy", "is_default": False}))
    )
    assert run("plans", "save", "-") == 0

    assert Plan.objects.get(name="canary").margin_bp == 50
    assert Plan.objects.get(name="copy").margin_bp == plan["margin_bp"]
    assert (run("plans", "delete", "copy"), run("plans", "delete", "canary")) == (0, 2)


@pytest.mark.parametrize("text", ["[]", "{", '{"name": "x", "marjin": 1, "steps": []}'])
def test_a_file_without_a_plan_is_refused(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)

    assert run("plans", "save", str(tmp_path / "plan.json")) == 2
    assert not Plan.objects.exists()


def test_plans_and_templates_are_listed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    make_plan()

    assert (run("plans"), run("plans", "templates")) == (0, 0)

    out = capsys.readouterr().out
    assert "5 → 25 → 100 %" in out
    assert "blue-green" in out


def test_a_release_is_started_printed_and_aborted(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    make_plan()
    make_model("digits")
    make_model("shapes")

    assert run("release", "start", "autumn", "digits=2", "shapes=3", "--plan", "canary") == 0
    release = str(Release.objects.get().pk)
    assert run("release", "abort", release, "--reason", "wrong week") == 0
    assert run("release", "status", release) == 0
    assert run("release") == 0

    assert f"release {release} (autumn): rolling_back" in capsys.readouterr().out
    assert set(Rollout.objects.values_list("phase", flat=True)) == {"rolling_back"}


@pytest.mark.parametrize("versions", [["digits"], ["digits="], ["digits=1", "digits=2"]])
def test_invalid_versions_of_a_release_are_refused(run: Run, versions: list[str]) -> None:
    assert run("release", "start", "autumn", *versions) == 2


def test_serving_prints_versions_and_who_decided(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    publish_table(reason="start", actor=ANNA, now=database_now() - timedelta(hours=1))
    rollout = make_baking(model)
    before = (rollout.started_at - timedelta(minutes=1)).isoformat()

    assert run("serving", "digits") == 0
    assert capsys.readouterr().out.splitlines()[::2] == [
        "digits: stable 1, beside it canary 2 at 5 %",
        f"decided by rollout {rollout.pk}",
    ]
    assert run("serving", "digits", "--at", before) == 0
    assert capsys.readouterr().out.startswith("digits: stable 1\n")
    assert run("serving", "digits", "--at", "2020-01-01T00:00:00Z") == 2
    assert run("history", "digits") == 0


def test_the_history_of_a_rollout_is_printed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    rollout = make_baking(make_model())

    assert run("explain", str(rollout.pk)) == 0

    assert "anna started it" in capsys.readouterr().out.splitlines()[0]
    assert run("explain", "none") == 2
