"""The command that begins an epoch asks, unless it is told not to, and says what it did."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from apps.models.models import AuditEntry
from apps.rollouts.models import Epoch
from tests.rollouts.factories import make_baking, make_instance, make_model

pytestmark = pytest.mark.django_db


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("start_epoch", "--reason", "restored", *arguments, stdout=out)
    return out.getvalue()


def answer(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: words)


def test_it_begins_the_next_epoch_and_says_what_is_published() -> None:
    make_baking(make_model())
    told = run("--yes")
    assert told == (
        "epoch 1 began: generation 1 of epoch 1 is published; generation 1 was the newest before\n"
    )
    assert AuditEntry.objects.get(action="epoch.started").origin == "manage.py start_epoch"


def test_without_a_terminal_it_asks_for_a_yes() -> None:
    with pytest.raises(CommandError, match="say --yes"):
        run()
    assert not Epoch.objects.exists()


def test_it_shows_what_the_fleet_serves_and_wants_the_number(monkeypatch: Any) -> None:
    make_instance("edge-1", applied_generation=500)
    out = StringIO()
    answer(monkeypatch, "yes")
    with pytest.raises(CommandError, match="Nothing has changed"):
        call_command("start_epoch", "--reason", "restored", stdout=out)
    assert "instance edge-1 serves generation 500" in out.getvalue()
    assert not Epoch.objects.exists()
    answer(monkeypatch, "1")
    assert "epoch 1 began" in run()


def test_a_number_that_is_taken_is_refused() -> None:
    run("--yes", "--epoch", "7")
    with pytest.raises(CommandError, match="epoch: 7 is out of range; expected 8"):
        run("--yes", "--epoch", "7")
