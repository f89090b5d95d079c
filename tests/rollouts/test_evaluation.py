"""An evaluation: frozen intervals, log entries, and repeated results."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.rollouts import evaluation
from apps.rollouts.evaluation import repeat_check
from apps.rollouts.interval_store import frozen_intervals
from apps.rollouts.models import Evaluation, Rollout
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument, from_json
from apps.rollouts.tick import tick_rollouts
from contract.routing import CanarySplit
from tests.rollouts.factories import ANNA, latest, make_baking, make_instance, make_model, send

pytestmark = pytest.mark.django_db


@pytest.fixture
def rollout() -> Rollout:
    """Return a rollout whose bake has started."""
    make_instance()
    send("digits", 1, requests=6_000, latency={"100": 5_900, "120": 100})
    rollout = make_baking(make_model())
    tick_rollouts()
    return rollout


def window(rollout: Rollout, variant: str, *, ago_s: float = 40, **fields: Any) -> None:
    at = rollout.started_at - timedelta(seconds=ago_s)
    defaults = {
        "split": str(rollout.pk),
        "generation": rollout.generation,
        "interval_started_at": at,
    }
    number = 2 if variant == "canary" else 1
    send("digits", number, at=at, variant=variant, **(defaults | fields))


def look(rollout: Rollout) -> None:
    Rollout.objects.update(next_check_at=database_now())
    tick_rollouts()


def test_every_result_can_be_repeated_from_its_log(rollout: Rollout) -> None:
    for ago_s in (70, 60, 50, 40):
        window(rollout, "canary", ago_s=ago_s, unit_errors=1, latency={"100": 58, "130": 2})
        window(rollout, "stable", ago_s=ago_s, units=900, latency={"100": 890, "130": 10})
        look(rollout)
    rows = list(Evaluation.objects.select_related("rollout"))
    assert len(rows) >= 9
    for row in rows:
        again = repeat_check(row)
        assert (again.verdict, again.reason) == (row.verdict, row.reason)
        assert again.evidence == row.evidence
        assert row.rule


def test_late_data_of_a_judged_interval_changes_no_evidence(rollout: Rollout) -> None:
    window(rollout, "canary")
    window(rollout, "stable")
    look(rollout)
    before = frozen_intervals(rollout)
    at = before[0].started_at
    window(rollout, "canary", interval_started_at=at, unit_errors=60)
    look(rollout)
    assert frozen_intervals(rollout) == before
    log = Evaluation.objects.filter(check_name="error-rate").order_by("id")
    assert {row.evidence["canary_events"] for row in log} == {0}


def test_new_intervals_are_frozen_after_the_old_ones(rollout: Rollout) -> None:
    for ago_s in (50, 40):
        window(rollout, "canary", ago_s=ago_s)
        look(rollout)
    assert list(rollout.intervals.values_list("ordinal", flat=True)) == [0, 1]
    assert Evaluation.objects.latest("id").inputs["intervals"] == 2


@pytest.mark.parametrize(("bake_s", "interval_s"), [(1_800, 10), (7_200, 10), (86_400, 120)])
def test_a_long_bake_has_long_intervals(bake_s: int, interval_s: int) -> None:
    steps = (StepDocument(weight_bp=500, bake_s=bake_s),)
    plan = PlanDocument(name="long", steps=steps)
    save_plan(document=plan, is_default=True, actor=ANNA)
    make_instance()
    rollout = make_baking(make_model())
    split = latest().models["digits"].split
    assert isinstance(split, CanarySplit)
    assert split.interval_s == interval_s
    tick_rollouts()
    rollout.refresh_from_db()
    wait_s = (rollout.next_check_at - rollout.step_started_at).total_seconds()
    assert 0 < wait_s <= interval_s
    # The look comes as an interval closes: they are aligned to the epoch.
    assert (rollout.next_check_at - evaluation.GRACE).timestamp() % interval_s == 0


def test_evaluations_get_rarer_with_more_intervals(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "INTERVALS_PER_EVALUATION", 2)
    plan, now = from_json(rollout.plan_document), database_now()
    waits = []
    for ago_s in (70, 60, 50, 40):
        window(rollout, "canary", ago_s=ago_s)
        look(rollout)
        waits.append((evaluation.next_evaluation_at(rollout, plan, now) - now).total_seconds())
    assert [math.ceil(wait_s / 10) * 10 for wait_s in waits] == [10, 20, 20, 30]
