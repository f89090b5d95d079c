"""Subscribers are notified of each transition and of stalls, but not of what was rolled back."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction

from apps.lib.clock import database_now
from apps.notifications.models import NotificationTarget, OutboxMessage
from apps.rollouts.models import Rollout, RolloutEvent
from apps.rollouts.services import abort_rollout, pause_rollout
from apps.rollouts.tick import tick_one
from tests.rollouts.factories import ANNA, make_baking, make_model

pytestmark = pytest.mark.django_db


@pytest.fixture
def rollout() -> Rollout:
    NotificationTarget.objects.create(
        name="ops",
        kind=NotificationTarget.Kind.SLACK,
        address="https://chat.example/hook",
        created_by="anna",
        created_at=database_now(),
    )
    return make_baking(make_model())


def sent_events() -> list[str]:
    return list(OutboxMessage.objects.order_by("created_at", "pk").values_list("event", flat=True))


def test_each_move_is_told_with_its_reason(rollout: Rollout) -> None:
    abort_rollout(rollout=rollout, actor=ANNA, now=database_now(), reason="wrong labels")
    assert set(sent_events()) == {
        "rollout.started",
        "rollout.preparing",
        "rollout.baking",
        "rollout.rolling_back",
    }
    last = OutboxMessage.objects.get(event="rollout.rolling_back").payload
    assert (last["target"], last["reason"], last["actor"]) == ("digits:2", "wrong labels", "anna")


def test_a_move_that_is_undone_is_not_told(rollout: Rollout) -> None:
    before = sent_events()
    with transaction.atomic():
        pause_rollout(rollout=rollout, actor=ANNA, now=database_now())
        transaction.set_rollback(True)
    assert sent_events() == before


def test_a_long_hold_is_told_once(rollout: Rollout) -> None:
    long_ago = database_now() - timedelta(minutes=11)
    RolloutEvent.objects.update(at=long_ago)
    for _ in range(3):
        tick_one(rollout.pk)
    assert sent_events().count("rollout.held") == 1
    held = OutboxMessage.objects.get(event="rollout.held").payload
    assert held["reason"] == "no data-plane instance is live"
