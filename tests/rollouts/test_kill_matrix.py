"""A worker is killed with -9 at every write of a tick, and around its publication.

The worker is a real process with a connection of its own. Whatever instant it dies at, the next
tick ends where an undisturbed one would have: each step is applied once, the last table is the
same.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import pytest
import redis
from django.core.management import call_command
from django.db import connection, connections

from apps.lib.clock import database_now
from apps.models.models import LiveSplit
from apps.rollouts import publication, services
from apps.rollouts.models import Instance, Rollout, RolloutEvent
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.publication import latest_table
from apps.rollouts.tasks import tick_task
from contract.routing import CanarySplit, decode
from tests.rollouts.factories import ANNA, make_instance, make_model

pytestmark = pytest.mark.django_db(transaction=True)

WRITES_MAX = 40
# The states between which a rollout is moved by a tick, by how many ticks lead there.
TICKS = {"pending": 0, "preparing": 1, "first step": 2, "second step": 4, "promoting": 6}


def make_rollout(ticks: int) -> Rollout:
    """Return a rollout that went so far; all instances have acked."""
    steps = tuple(StepDocument(weight_bp=w, bake_s=0, checks=()) for w in (500, 10_000))
    save_plan(document=PlanDocument(name="bare", steps=steps), is_default=True, actor=ANNA)
    make_instance(applied_generation=1_000)
    model = make_model()
    target = model.versions.get(number=2)
    rollout = services.start_rollout(model=model, target=target, actor=ANNA, now=database_now())
    for _ in range(ticks):
        tick()
    return rollout


def tick() -> None:
    make_due()
    tick_task()


def make_due() -> None:
    due = database_now()
    Rollout.objects.filter(next_check_at__isnull=False).update(next_check_at=due)
    Instance.objects.update(reported_at=due)


def in_a_worker(*doings: Callable[[], None]) -> list[int]:
    """Run each in a process of its own, all at once; return how they ended."""
    make_due()
    connections.close_all()
    children = []
    for do in doings:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                do()
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_at_write(number: int) -> Callable[[], None]:
    left = iter(range(number))

    def run(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        is_write = sql.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE"))
        if is_write and next(left, None) is None:
            die()
        return execute(sql, params, many, context)

    def do() -> None:
        with connection.execute_wrapper(run):
            tick_task()

    return do


def killed_at(patched: str) -> Callable[[], None]:
    """Return a tick that dies while it notifies the data planes, before or after the message."""

    def do() -> None:
        if patched == "before":
            publication.announce = die  # type: ignore[assignment]
        else:
            tell = redis.Redis.publish
            redis.Redis.publish = lambda *states: (tell(*states), die())  # type: ignore[method-assign]
        tick_task()

    return do


def events() -> list[tuple[str, str, int]]:
    rows = RolloutEvent.objects.order_by("id")
    return [(row.from_state, row.to_state, row.weight_bp) for row in rows]


def served() -> tuple[Any, ...]:
    """Return what serves in the end."""
    table = latest_table()
    route = decode(bytes(table.document)).models["digits"] if table else None
    split = route.split if route else None
    share = (split.version, split.weight_bp) if isinstance(split, CanarySplit) else None
    stable = route.stable if route else None
    return stable, share, LiveSplit.objects.count()


def forget() -> None:
    """Empty all tables, as between two tests."""
    call_command("flush", verbosity=0, interactive=False)


def wait_for_the_dead() -> None:
    """PostgreSQL undoes what a killed worker left as soon as it sees that nobody is there."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    deadline = monotonic() + 10
    while monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute(f"{others} AND pid <> pg_backend_pid()")
            if cursor.fetchone() == (0,):
                return
        sleep(0.01)
    raise AssertionError("a killed worker's connection is still there")


def undisturbed(ticks: int) -> list[tuple[Any, ...]]:
    """Return what is there after one more tick, and after two: it may die with its work done."""
    make_rollout(ticks)
    states = []
    for _ in range(2):
        tick()
        states.append((events(), served()))
    forget()
    return states


@pytest.mark.parametrize("ticks", TICKS.values(), ids=TICKS)
def test_a_worker_killed_at_any_write_changes_nothing_in_the_end(ticks: int) -> None:
    expected = undisturbed(ticks)
    deaths = 0
    for number in range(WRITES_MAX):
        make_rollout(ticks)
        (code,) = in_a_worker(dying_at_write(number))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
        wait_for_the_dead()
        tick()
        assert (events(), served()) in expected, f"killed at write {number}"
        forget()
    assert 0 < deaths < WRITES_MAX


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("ticks", [2, 6], ids=["first step", "promoting"])
def test_a_worker_killed_around_the_publication_has_published_once(ticks: int, when: str) -> None:
    make_rollout(ticks - 1)
    tick()
    expected = (events(), served())
    forget()
    make_rollout(ticks - 1)
    (code,) = in_a_worker(killed_at(when))
    assert code == -signal.SIGKILL
    assert (events(), served()) == expected


def test_many_workers_and_beats_at_once_take_each_step_once() -> None:
    make_rollout(0)
    while Rollout.objects.get().is_live:
        tick()
    expected = (events(), served())
    forget()
    make_rollout(0)
    assert in_a_worker(*[keep_ticking] * 4) == [0] * 4
    assert (events(), served()) == expected


def keep_ticking() -> None:
    deadline = monotonic() + 30
    while monotonic() < deadline and Rollout.objects.get().is_live:
        tick()


def test_a_duplicate_delivery_takes_no_step_twice() -> None:
    rollout = make_rollout(2)
    tick()
    before = events()
    assert in_a_worker(tick_task, tick_task, tick_task) == [0] * 3
    rollout.refresh_from_db()
    assert (events(), rollout.step_index) == ([*before, ("baking", "baking", 10_000)], 1)
