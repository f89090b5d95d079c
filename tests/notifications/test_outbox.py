"""The outbox's rows: written with what they tell of, leased, settled, pruned."""

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
from tests.notifications.rows import ADA, make_model, make_target, pass_time, reread, tell

pytestmark = pytest.mark.django_db

URL = "https://hooks.example/"


def names(event: str, model: str) -> set[str]:
    made = enqueue(event=event, model=make_model(model), payload={}, now=database_now())
    return {message.target.name for message in made}


def test_only_who_asked_is_told() -> None:
    make_target(URL, name="all")
    make_target(URL, name="leaks", events=["leak.detected"])
    make_target(URL, name="digits", model=make_model())
    off = make_target(URL, name="off")
    deactivate_target(target=off, actor=ADA, now=database_now())

    assert names("leak.detected", "digits") == {"all", "leaks", "digits"}
    assert names("rollout.failed", "digits") == {"all", "digits"}
    assert names("rollout.failed", "other") == {"all"}


def test_what_was_undone_is_not_told() -> None:
    make_target(URL)
    with transaction.atomic():
        tell()
        transaction.set_rollback(True)

    assert not OutboxMessage.objects.exists()


def test_no_payload_undoes_what_it_tells_of() -> None:
    make_target(URL)
    odd = {"p": float("nan"), "text": "a\x00b\ud800", "at": database_now(), 5: {1, 2}}
    stored = reread(tell(evidence=odd)).payload["evidence"]

    assert (stored["p"], stored["text"]) == (None, "ab?")
    assert isinstance(stored["at"], str)


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase != Phase.PENDING])
def test_every_phase_that_a_rollout_enters_is_an_event(phase: Phase) -> None:
    assert f"rollout.{phase}" in EVENTS


def test_a_sender_that_dies_before_it_sent_loses_nothing() -> None:
    target = make_target(URL)
    message = tell()
    assert claim(target.pk, database_now())

    assert claim(target.pk, database_now()) is None
    assert due_targets(database_now()) == []
    pass_time(seconds=LEASE.total_seconds())
    again = claim(target.pk, database_now())
    assert again is not None
    assert (again.pk, again.attempts) == (message.pk, 2)


def test_a_sender_that_is_late_changes_nothing_but_tells_of_a_delivery() -> None:
    target = make_target(URL)
    tell()
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
    message = tell()
    for _ in range(ATTEMPTS_MAX):
        assert claim(target.pk, database_now())
        pass_time(seconds=LEASE.total_seconds())

    assert claim(target.pk, database_now()) is None
    assert reread(message).state == "gave_up"


def test_nothing_is_sent_after_a_deactivation_not_even_when_it_is_active_again() -> None:
    target = make_target(URL)
    message = tell()
    deactivate_target(target=target, actor=ADA, now=database_now())
    activate_target(target=target, actor=ADA, now=database_now())

    assert claim(target.pk, database_now()) is None
    assert reread(message).last_error == "the target was deactivated"


def test_a_test_message_goes_to_whoever_asks_for_other_events() -> None:
    target = make_target(URL, events=["leak.detected"])
    message = send_test(target=target, actor=ADA, now=database_now())

    assert (message.event, claim(target.pk, database_now())) == (TEST, message)


def test_what_was_settled_long_ago_is_deleted_and_nothing_else() -> None:
    make_target(URL)
    old, recent, waiting = tell(), tell(), tell()
    now = database_now()
    rows = OutboxMessage.objects
    rows.filter(pk=old.pk).update(delivered_at=now - timedelta(days=31))
    rows.filter(pk=recent.pk).update(gave_up_at=now - timedelta(days=29))
    rows.filter(pk=waiting.pk).update(created_at=now - timedelta(days=90))
    prune_task()

    assert set(rows.values_list("pk", flat=True)) == {recent.pk, waiting.pk}
    assert prune_messages(now=now + timedelta(days=2)) == 1
