"""Two controllers stepped twice as fast (flagger #1613). Here several tickers take one step."""

from __future__ import annotations

from collections.abc import Callable
from threading import Barrier, Thread

import pytest
from django.db import connection, transaction

from apps.lib.clock import database_now
from apps.rollouts.models import Rollout, RolloutEvent
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import ANNA, make_baking, make_instance, make_model

pytestmark = pytest.mark.django_db(transaction=True)

CONTROLLERS = 6


def at_once(do: Callable[[], object]) -> None:
    start = Barrier(CONTROLLERS)

    def work() -> None:
        try:
            start.wait()
            do()
        finally:
            connection.close()

    threads = [Thread(target=work) for _ in range(CONTROLLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_due_step_is_taken_once_by_concurrent_ticks() -> None:
    steps = tuple(StepDocument(weight_bp=w, bake_s=0, checks=()) for w in (500, 2_500, 10_000))
    save_plan(document=PlanDocument(name="bare", steps=steps), is_default=True, actor=ANNA)
    make_instance()
    with transaction.atomic():
        rollout = make_baking(make_model())
    tick_rollouts()
    Rollout.objects.update(next_check_at=database_now())
    before = RolloutEvent.objects.count()
    at_once(tick_rollouts)
    rollout.refresh_from_db()
    # The next step's checks are due an interval later, for all tickers.
    assert (rollout.weight_bp, RolloutEvent.objects.count() - before) == (2_500, 1)
