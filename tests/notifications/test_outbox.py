"""Rows of the outbox: written with their event, leased, settled, pruned."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction

from apps.lib.clock import database_now
from apps.notifications.events import EVENTS, TEST
from apps.notifications.models import OutboxMessage
from apps.notifications.outbox import (
    ATTEMPTS_MAX,
    LEASE,
    claim,
    due_targets,
    enqueue,
    settle_delivered,
    settle_failed,
)
from apps.notifications.services import (
    activate_target,
    deactivate_target,
    prune_messages,
    send_test,
)
from apps.notifications.tasks import prune_task
from apps.rollouts.states import Phase
from tests.notifications.rows import ADA, enqueue_event, make_model, make_target, pass_time, reread

pytestmark = pytest.mark.django_db

URL = "https://hooks.example/"


def names(event: str, model: str) -> set[str]:
    messages = enqueue(event=event, model=make_model(model), payload={}, now=database_now())
    return {message.target.name for message in messages}


def test_only_subscribed_active_targets_get_an_event() -> None:
    make_target(URL, name="all")
    make_target(URL, name="leaks", events=["leak.detected"])
    make_target(URL, name="digits", model=make_model())
    off = make_target(URL, name="off")
    deactivate_target(target=off, actor=ADA, now=database_now())

    assert names("leak.detected", "digits") == {"all", "leaks", "digits"}
    assert names("rollout.failed", "digits") == {"all", "digits"}
    assert names("rollout.failed", "other") == {"all"}


def test_an_event_of_a_rolled_back_transaction_is_not_sent() -> None:
    make_target(URL)
    with transaction.atomic():
        enqueue_event()
        transaction.set_rollback(True)

    assert not OutboxMessage.objects.exists()


def test_any_payload_can_be_stored() -> None:
    make_target(URL)
    odd = {"p": float("nan"), "text": "a\x00b\ud800", "at": database_now(), 5: {1, 2}}
    stored = reread(enqueue_event(evidence=odd)).payload["evidence"]

    assert (stored["p"], stored["text"]) == (None, "ab?")
    assert isinstance(stored["at"], str)


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase != Phase.PENDING])
def test_every_phase_that_a_rollout_enters_is_an_event(phase: Phase) -> None:
    assert f"rollout.{phase}" in EVENTS


def test_a_sender_that_dies_before_it_sends_loses_nothing() -> None:
    target = make_target(URL)
    message = enqueue_event()
    assert claim(target.pk, database_now())

    assert claim(target.pk, database_now()) is None
    assert due_targets(database_now()) == []
    pass_time(seconds=LEASE.total_seconds())
    again = claim(target.pk, database_now())
    assert again is not None
    assert (again.pk, again.attempts) == (message.pk, 2)


def test_a_late_sender_can_only_record_a_delivery() -> None:
    target = make_target(URL)
    enqueue_event()
    late = claim(target.pk, database_now())
    pass_time(seconds=LEASE.total_seconds())
    current = claim(target.pk, database_now())
    assert late is not None
    assert current is not None

    settle_failed(late, "too late", database_now())
    assert reread(current).last_error == ""
    settle_delivered(late, database_now())
    settle_failed(current, "was delivered meanwhile", database_now())
    assert reread(current).state == "delivered"


def test_a_message_that_kills_its_senders_is_given_up() -> None:
    target = make_target(URL)
    message = enqueue_event()
    for _ in range(ATTEMPTS_MAX):
        assert claim(target.pk, database_now())
        pass_time(seconds=LEASE.total_seconds())

    assert claim(target.pk, database_now()) is None
    assert reread(message).state == "gave_up"


def test_a_deactivation_gives_up_open_messages_for_ever() -> None:
    target = make_target(URL)
    message = enqueue_event()
    deactivate_target(target=target, actor=ADA, now=database_now())
    activate_target(target=target, actor=ADA, now=database_now())

    assert claim(target.pk, database_now()) is None
    assert reread(message).last_error == "the target was deactivated"


def test_a_test_message_ignores_the_selected_events() -> None:
    target = make_target(URL, events=["leak.detected"])
    message = send_test(target=target, actor=ADA, now=database_now())

    assert (message.event, claim(target.pk, database_now())) == (TEST, message)


def test_only_messages_settled_long_ago_are_deleted() -> None:
    make_target(URL)
    old, recent, waiting = enqueue_event(), enqueue_event(), enqueue_event()
    now = database_now()
    rows = OutboxMessage.objects
    rows.filter(pk=old.pk).update(delivered_at=now - timedelta(days=31))
    rows.filter(pk=recent.pk).update(gave_up_at=now - timedelta(days=29))
    rows.filter(pk=waiting.pk).update(created_at=now - timedelta(days=90))
    prune_task()

    assert set(rows.values_list("pk", flat=True)) == {recent.pk, waiting.pk}
    assert prune_messages(now=now + timedelta(days=2)) == 1
