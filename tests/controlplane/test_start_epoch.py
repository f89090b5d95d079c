"""`manage.py start_epoch` asks for confirmation and prints the result."""

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


def test_it_starts_the_next_epoch_and_prints_the_generation() -> None:
    make_baking(make_model())
    output = run("--yes")
    assert output == (
        "epoch 1 started: published generation 1 of epoch 1; the latest generation before was 1\n"
    )
    assert AuditEntry.objects.get(action="epoch.started").origin == "manage.py start_epoch"


def test_without_a_terminal_it_requires_the_option() -> None:
    with pytest.raises(CommandError, match="confirm with --yes"):
        run()
    assert not Epoch.objects.exists()


def test_it_lists_the_instances_and_asks_for_the_number(monkeypatch: Any) -> None:
    make_instance("edge-1", applied_generation=500)
    out = StringIO()
    answer(monkeypatch, "yes")
    with pytest.raises(CommandError, match="nothing has changed"):
        call_command("start_epoch", "--reason", "restored", stdout=out)
    assert "instance edge-1 serves generation 500" in out.getvalue()
    assert not Epoch.objects.exists()
    answer(monkeypatch, "1")
    assert "epoch 1 started" in run()


def test_a_number_that_is_taken_is_refused() -> None:
    run("--yes", "--epoch", "7")
    with pytest.raises(CommandError, match="epoch: 7 is out of range; expected 8"):
        run("--yes", "--epoch", "7")
