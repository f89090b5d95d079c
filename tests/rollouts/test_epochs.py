"""A restored database: its fleet is ahead of it, and rollouts hold until an epoch is begun."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from threading import Event, Thread
from typing import Any

import pytest
from django.db import connection, transaction

from apps.lib.clock import database_now
from apps.lib.errors import Invalid
from apps.models.models import AuditEntry, RegisteredModel
from apps.rollouts.divergence import watch_traffic
from apps.rollouts.epochs import was_published
from apps.rollouts.fleet_status import silent_instances, unacked
from apps.rollouts.ingestion import apply_windows
from apps.rollouts.maintenance import start_epoch
from apps.rollouts.models import (
    BreakerTripRecord,
    Epoch,
    Evaluation,
    Instance,
    PublishedTable,
    Rollout,
    TelemetryRow,
)
from apps.rollouts.publication import publish_table, record_report
from apps.rollouts.states import Phase
from apps.rollouts.tasks import prune_task
from apps.rollouts.tick import tick_rollouts
from contract.generations import first_of
from contract.messages import Batch, BreakerTrip, InstanceReport, TelemetryWindow
from contract.routing import decode
from tests.rollouts.factories import ANNA, make_baking, make_instance, make_model, send

pytestmark = pytest.mark.django_db
# What the fleet serves from that this database has forgotten.
FORGOTTEN = 500
# The fleet may be heard of again at once.
LATER = timedelta(seconds=11)


def begin(number: int | None = None, ago: timedelta = LATER) -> Epoch:
    now = database_now() - ago
    return start_epoch(reason="restored to 14:00", actor=ANNA, now=now, number=number)


def report(applied: int, name: str = "i-1", **fields: Any) -> Instance:
    message = InstanceReport(
        instance=name, boot="b", at_ms=1_000, applied_generation=applied, **fields
    )
    return record_report(message, now=database_now())


def window(generation: int) -> TelemetryWindow:
    return TelemetryWindow(
        model="digits", version="2", variant="canary", generation=generation, split="s",
        started_at_ms=1, ended_at_ms=2, interval_started_at_ms=1, requests=1,
    )  # fmt: skip


def test_the_first_table_of_an_epoch_is_newer_than_all_that_a_fleet_can_serve() -> None:
    rollout = make_baking(make_model())
    report(FORGOTTEN)

    epoch = begin()

    latest = PublishedTable.objects.first()
    assert latest is not None
    assert (epoch.number, epoch.restored_generation) == (1, rollout.generation)
    assert latest.generation == first_of(1) == decode(bytes(latest.document)).generation
    RegisteredModel.objects.update(timeout_ms=77)
    assert publish_table(reason="next", actor=ANNA, now=database_now()) == first_of(1) + 1


def test_an_epoch_is_above_those_of_the_fleet_and_of_redis(settings: Any) -> None:
    report(first_of(3) + 5)
    with pytest.raises(Invalid, match="expected 4 to"):
        begin(number=3)
    assert begin().number == 4
    assert begin().number == 5
    with pytest.raises(Invalid, match="what was restored"):
        start_epoch(reason=" ", actor=ANNA, now=database_now())


def test_it_is_in_the_audit_log() -> None:
    make_baking(make_model())
    begin()
    entry = AuditEntry.objects.get(action="epoch.started")
    assert (entry.actor, entry.target) == (ANNA.name, "epoch 1")
    assert entry.after == {"generation": first_of(1), "reason": "restored to 14:00"}


def test_rollouts_hold_and_judge_nothing_while_the_fleet_is_ahead() -> None:
    rollout = make_baking(make_model())
    report(FORGOTTEN)
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.reason == (
        "held: instance i-1 serves generation 500, which this database never published: was it "
        "restored? Start an epoch with manage.py start_epoch"
    )
    assert (rollout.step_due_at, rollout.next_check_at) == (None, None)
    assert not Evaluation.objects.exists()


def test_an_instance_ahead_has_acked_nothing() -> None:
    rollout = make_baking(make_model())
    report(FORGOTTEN)
    assert unacked(rollout.generation or 0, database_now()) == [
        ("i-1", "serves generation 500, which this database never published")
    ]


def test_a_control_plane_that_was_replaced_holds_and_says_so() -> None:
    rollout = make_baking(make_model())
    report(first_of(1))
    tick_rollouts()
    rollout.refresh_from_db()
    assert "serves generation 1 of epoch 1" in rollout.reason
    assert "another control plane has started that epoch" in rollout.reason


def test_once_the_fleet_follows_the_rollout_goes_on() -> None:
    rollout = make_baking(make_model())
    report(FORGOTTEN)
    begin()
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.reason.startswith("waiting for generation")
    assert rollout.step_due_at is None
    report(first_of(1))
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.step_due_at is not None


def test_nobody_waits_for_the_fleet_before_the_restore() -> None:
    rollout = make_baking(make_model())
    make_instance("old", reported_at=database_now() - timedelta(minutes=2))
    report(FORGOTTEN)
    assert len(unacked(0, database_now())) == 2
    begin(ago=timedelta(seconds=30))
    report(first_of(1))
    assert not silent_instances(database_now()).exists()
    assert unacked(rollout.generation or 0, database_now()) == []


def test_nobody_who_could_not_yet_report_is_taken_for_gone() -> None:
    rollout = make_baking(make_model())
    Rollout.objects.update(phase=Phase.ROLLING_BACK)
    begin(ago=timedelta(seconds=3))
    (result,) = unacked(rollout.generation or 0, database_now())
    assert result == (
        "of the fleet before the restore",
        "may still report: epoch 1 started 3 s ago",
    )
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.ROLLING_BACK


def test_what_was_measured_under_forgotten_tables_does_not_count() -> None:
    make_baking(make_model())
    kept, lost = send("digits", 2, generation=1), send("digits", 2, generation=FORGOTTEN)
    trip = BreakerTrip(
        model="digits", version="2", generation=FORGOTTEN, count=1, last_at_ms=1, reason="x"
    )
    report(FORGOTTEN, trips=(trip,))
    begin()
    report(FORGOTTEN, trips=(trip,))
    windows = tuple(window(each) for each in (1, FORGOTTEN, first_of(1)))
    apply_windows([Batch(instance="i", boot="b", sequence=1, windows=windows)], database_now())
    assert kept.pk != lost.pk
    counted = TelemetryRow.objects.order_by("generation").values_list("generation", flat=True)
    assert list(counted) == [1, 1, first_of(1)]
    assert not BreakerTripRecord.objects.exists()


def test_what_a_restored_database_has_forgotten_raises_no_alarm() -> None:
    make_baking(make_model())
    model = make_model("other")
    publish_table(reason="x", actor=ANNA, now=database_now())
    send("other", 2, generation=FORGOTTEN)
    assert model.stable is not None
    assert watch_traffic(database_now()) == []


def test_which_generations_came_from_this_database() -> None:
    make_baking(make_model())
    begin()
    begin(number=4)
    result = {each: was_published(each) for each in (0, 1, FORGOTTEN, first_of(1), first_of(1) + 1)}
    assert result == {0: True, 1: True, FORGOTTEN: False, first_of(1): True, first_of(1) + 1: False}
    assert [was_published(each) for each in (first_of(3), first_of(4), first_of(5))] == [
        False, True, False,
    ]  # fmt: skip


def test_pruning_keeps_the_tables_before_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.rollouts.tasks.KEEP_TABLES", 2)
    make_baking(make_model())
    begin()
    begin()
    prune_task()
    kept = PublishedTable.objects.values_list("generation", flat=True)
    assert list(kept) == [first_of(2), first_of(1)]


def someone_waits() -> bool:
    """Say whether a transaction waits for an advisory lock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        return cursor.fetchone() is not None


@pytest.mark.django_db(transaction=True)
def test_an_epoch_waits_for_what_is_being_stored_and_deletes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with transaction.atomic():
        make_baking(make_model())
    stored, begun = Event(), Event()
    monkeypatch.setattr("apps.rollouts.maintenance.remember_epoch", lambda _: None)

    def store() -> None:
        with closing(connection), transaction.atomic():
            batch = Batch(instance="i", boot="b", sequence=1, windows=(window(FORGOTTEN),))
            apply_windows([batch], database_now())
            stored.set()
            while not (begun.wait(0.01) or someone_waits()):
                pass

    thread = Thread(target=store)
    thread.start()
    stored.wait(10)
    begin()
    begun.set()
    thread.join(10)
    assert not TelemetryRow.objects.exists()
