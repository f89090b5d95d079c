"""Freeze windows, the policy, quarantine and silent instances, as people set them right."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.lib.errors import Conflict, Invalid
from apps.models.models import AuditEntry
from apps.rollouts.freeze_store import create_freeze, end_freeze
from apps.rollouts.freezes import frozen_by
from apps.rollouts.maintenance import (
    concurrent_max,
    forget_instance,
    lift_quarantine,
    set_concurrent_max,
)
from apps.rollouts.models import FreezeWindow, Instance, Quarantine
from tests.rollouts.factories import ANNA, make_instance, make_model

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)


def freeze(**fields: Any) -> FreezeWindow:
    now = database_now()
    values = {"model": None, "reason": "sale", "starts_at": now - HOUR, "ends_at": now + HOUR}
    return create_freeze(**(values | fields), actor=ANNA, now=now)


def test_a_window_that_is_open_ends_now() -> None:
    model, window = make_model(), freeze()
    assert frozen_by(model, database_now()) is not None
    end_freeze(window=window, actor=ANNA, now=database_now())
    assert frozen_by(model, database_now()) is None
    actions = [entry.action for entry in AuditEntry.objects.order_by("id")]
    assert actions == ["freeze.created", "freeze.ended"]


@pytest.mark.parametrize(
    "fields",
    [
        {"reason": " "},
        {"ends_at": lambda: database_now() - timedelta(seconds=1)},
        {"ends_at": lambda: database_now() - 2 * HOUR},
        {"ends_at": lambda: database_now() + timedelta(days=366)},
        {"ends_at": lambda: database_now() + timedelta(days=7), "is_weekly": True},
    ],
)
def test_a_window_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    values = {name: value() if callable(value) else value for name, value in fields.items()}
    with pytest.raises(Invalid, match=r"^(reason|ends_at): "):
        freeze(**values)
    assert not FreezeWindow.objects.exists()


def test_the_limit_is_set_and_taken_away() -> None:
    set_concurrent_max(limit=2, actor=ANNA)
    assert concurrent_max() == 2
    set_concurrent_max(limit=None, actor=ANNA)
    assert concurrent_max() is None
    with pytest.raises(Invalid, match="concurrent_max"):
        set_concurrent_max(limit=0, actor=ANNA)


def test_a_quarantine_is_lifted_once_and_with_a_reason() -> None:
    version = make_model().versions.get(number=2)
    Quarantine.objects.create(version=version, reason="errors", at=database_now())
    with pytest.raises(Invalid, match="reason"):
        lift_quarantine(version=version, reason="", actor=ANNA)
    lift_quarantine(version=version, reason="the data was wrong", actor=ANNA)
    with pytest.raises(Conflict, match="not in quarantine"):
        lift_quarantine(version=version, reason="again", actor=ANNA)


def test_only_a_silent_instance_is_forgotten() -> None:
    live = make_instance()
    silent = make_instance("i-2", reported_at=database_now() - HOUR)
    with pytest.raises(Conflict, match="is live"):
        forget_instance(instance=live, actor=ANNA, now=database_now())
    forget_instance(instance=silent, actor=ANNA, now=database_now())
    assert [row.name for row in Instance.objects.all()] == ["i-1"]
