"""A tick publishes once for all that goes on, and what cannot go on keeps nobody else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import Model

from apps.lib.clock import database_now
from apps.rollouts import phases, steps, tick
from apps.rollouts.models import (
    BreakerTripRecord,
    PublishedTable,
    Rollout,
    RolloutEvent,
    ServingChange,
)
from apps.rollouts.publication import one_publication, publish_table
from apps.rollouts.services import abort_rollout
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from contract.routing import TableError, decode
from tests.rollouts.factories import ANNA, make_baking, make_instance, make_model

pytestmark = pytest.mark.django_db


def make_passing(*names: str) -> list[Rollout]:
    """Return rollouts that the next tick takes a step on: their step asks nothing."""
    make_instance()
    rollouts = [make_baking(make_model(name)) for name in names]
    now = database_now()
    for rollout in rollouts:
        for step in rollout.plan_document["steps"]:
            step |= {"checks": [], "requests_min": 0}
        rollout.step_started_at = rollout.step_due_at = now - timedelta(seconds=1)
        rollout.next_check_at = now - timedelta(seconds=1)
        rollout.save()
    return rollouts


def trip(name: str) -> None:
    at = database_now() - timedelta(seconds=30)
    BreakerTripRecord.objects.create(
        instance="i-1", boot="b", model_name=name, version_number="2", generation=99, count=1,
        reason="x", first_at=at, last_at=database_now(),
    )  # fmt: skip


def phases_of(rollouts: list[Rollout]) -> list[tuple[str, int]]:
    for rollout in rollouts:
        rollout.refresh_from_db()
    return [(rollout.phase, rollout.step_index) for rollout in rollouts]


def test_all_steps_of_a_tick_are_one_table() -> None:
    rollouts = make_passing("a", "b", "c")
    before = PublishedTable.objects.count()
    tick_rollouts()
    assert PublishedTable.objects.count() == before + 1
    assert phases_of(rollouts) == [("baking", 1)] * 3
    table = PublishedTable.objects.order_by("-generation")[0]
    assert {rollout.generation for rollout in rollouts} == {table.generation}
    assert {rollout.step_generations[-1] for rollout in rollouts} == {table.generation}
    assert decode(bytes(table.document)).generation == table.generation
    assert table.reason == "3 changes: a:2 at 25 %; b:2 at 25 %; c:2 at 25 %"


def test_each_model_keeps_its_own_reason() -> None:
    make_passing("a", "b")
    tick_rollouts()
    changes = ServingChange.objects.order_by("-id")[:2]
    assert {(each.model_name, each.reason) for each in changes} == {
        ("a", "a:2 at 25 %"),
        ("b", "b:2 at 25 %"),
    }


def test_going_back_and_going_on_are_one_table_too() -> None:
    rollouts = make_passing("a", "b")
    trip("b")
    before = PublishedTable.objects.count()
    tick_rollouts()
    assert phases_of(rollouts) == [("baking", 1), ("rolling_back", 0)]
    assert PublishedTable.objects.count() == before + 1


def test_a_move_that_fails_keeps_no_other_from_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = make_passing("a", "b", "c")
    enter = phases.enter_step

    def enter_step(rollout: Rollout, *arguments: Any) -> None:
        enter(rollout, *arguments)
        if rollout.model.name == "b":
            raise RuntimeError("a fault after its table was asked for")

    monkeypatch.setattr(steps, "enter_step", enter_step)
    tick_rollouts()
    assert phases_of(rollouts) == [("baking", 1), ("baking", 0), ("baking", 1)]
    table = PublishedTable.objects.order_by("-generation")[0]
    assert "b:2" not in table.reason
    # Nobody forgets the one that failed.
    monkeypatch.undo()
    tick_rollouts()
    assert phases_of(rollouts)[1] == ("baking", 1)


def test_moves_that_make_no_table_together_are_made_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rollouts = make_passing("a", "b")

    def together(_: Any) -> int:
        raise TableError("a contradiction")

    monkeypatch.setattr(tick, "_apply_together", together)
    tick_rollouts()
    assert phases_of(rollouts) == [("baking", 1)] * 2


def test_an_abort_in_between_is_not_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = make_passing("a", "b")
    apply_all = tick._apply_all

    def apply_all_late(moves: list[steps.Move]) -> None:
        abort_rollout(rollout=rollouts[0], actor=ANNA, now=database_now(), reason="no")
        apply_all(moves)

    monkeypatch.setattr(tick, "_apply_all", apply_all_late)
    tick_rollouts()
    assert phases_of(rollouts) == [("rolling_back", 0), ("baking", 1)]


def test_a_worker_that_dies_before_the_moves_leaves_them_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rollouts = make_passing("a")
    monkeypatch.setattr(tick, "_apply_all", lambda _: None)
    tick_rollouts()
    assert phases_of(rollouts) == [("baking", 0)]
    monkeypatch.undo()
    tick_rollouts()
    assert phases_of(rollouts) == [("baking", 1)]


def test_a_tick_without_time_still_goes_back_and_takes_the_rest_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rollouts = make_passing("a", "b")
    trip("a")
    monkeypatch.setattr(tick, "EVALUATIONS_CPU_S", 0.0)
    assert tick_rollouts() == 1
    assert phases_of(rollouts) == [("rolling_back", 0), ("baking", 0)]
    monkeypatch.undo()
    tick_rollouts()
    assert phases_of(rollouts)[1] == ("baking", 1)


def test_a_tick_over_rollouts_that_are_not_due_reads_them_in_a_few_queries(
    django_assert_max_num_queries: Any,
) -> None:
    rollouts = make_passing(*(f"m{number}" for number in range(8)))
    later = database_now() + timedelta(seconds=30)
    Rollout.objects.update(step_due_at=later, next_check_at=later)
    with django_assert_max_num_queries(8):
        assert tick_rollouts() == 0
    assert phases_of(rollouts) == [("baking", 0)] * 8


def test_why_rollouts_wait_is_told_without_looking_at_them() -> None:
    rollouts = [make_baking(make_model(name)) for name in ("a", "b")]
    make_instance("late", applied_generation=0)
    Rollout.objects.update(next_check_at=database_now() + timedelta(seconds=30))
    assert tick_rollouts() == 0
    for rollout in rollouts:
        rollout.refresh_from_db()
        assert "instance late still serves generation 0" in rollout.reason


def test_what_is_asked_for_in_a_block_that_fails_is_not_published() -> None:
    make_model()

    def ask_and_fail() -> None:
        with transaction.atomic(), one_publication():
            publish_table(reason="x", actor=ANNA, now=database_now())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        ask_and_fail()
    assert not PublishedTable.objects.exists()
    with transaction.atomic(), one_publication():
        pass
    assert not PublishedTable.objects.exists()


@contextmanager
def locked(row: Model) -> Iterator[None]:
    """Have somebody else hold a row while the block runs."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with closing(connection), transaction.atomic():
            type(row)._default_manager.select_for_update(of=("self",)).get(pk=row.pk)
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("row", [lambda r: r.model, lambda r: r.target], ids=["model", "version"])
def test_who_changes_what_moves_and_is_about_to_publish_is_not_waited_for(
    row: Callable[[Rollout], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction.atomic():
        rollouts = make_passing("a", "b")
    apply_all = tick._apply_all

    def apply_all_beside(moves: list[steps.Move]) -> None:
        with locked(row(rollouts[0])):
            apply_all(moves)

    monkeypatch.setattr(tick, "_apply_all", apply_all_beside)
    tick_rollouts()
    assert phases_of(rollouts) == [("baking", 0), ("baking", 1)]
    monkeypatch.undo()
    tick_rollouts()
    assert phases_of(rollouts)[0] == (Phase.BAKING, 1)
    assert RolloutEvent.objects.filter(step_index=1).count() == 2
