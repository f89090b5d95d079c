"""Folding unit values costs the same with and without statistics of the planner."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, transaction

from apps.experiments.models import Experiment, Metric, OutcomeRow
from apps.experiments.services import MetricChoice
from apps.experiments.unit_values import fold
from tests.experiments.factories import NOW, expose, make_running, observe

pytestmark = pytest.mark.django_db
UNITS = 400


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


def _explained(work: Callable[[], None]) -> dict[str, Any]:
    """Return PostgreSQL's plan of the fold that `work` executes."""
    plans: list[dict[str, Any]] = []

    def explain(execute: Any, sql: str, parameters: Any, many: bool, context: Any) -> Any:
        if "FOR UPDATE" not in sql:
            return execute(sql, parameters, many, context)
        done = execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", parameters, many, context)
        (row,) = context["cursor"].fetchone()
        plans.append((row if isinstance(row, list) else json.loads(row))[0]["Plan"])
        return done

    with connection.execute_wrapper(explain):
        work()
    (plan,) = plans
    return plan


def _leave_empty_pages(experiment: Experiment) -> None:
    """Leave pages without rows in the table, as a deleted experiment does."""
    with transaction.atomic():
        for i in range(UNITS):
            expose(experiment, f"gone{i}", "weak")
        transaction.set_rollback(True)


def test_the_work_of_a_fold_grows_with_its_units_though_the_tables_statistics_are_old() -> None:
    metric = Metric.objects.create(name="m", kind="mean")
    speed = Metric.objects.create(name="speed", kind="ratio", source="latency")
    experiment = make_running(metrics=[MetricChoice(metric), MetricChoice(speed, "secondary")])
    _leave_empty_pages(experiment)
    other = Metric.objects.create(name="other", kind="mean")
    OutcomeRow.objects.bulk_create(
        OutcomeRow(event_id=f"o{i}", unit=f"o{i}", metric=other, value=1.0, occurred_at=NOW)
        for i in range(20 * UNITS)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE experiments_exposurerow, experiments_outcomerow")
    for i in range(UNITS):
        expose(experiment, f"u{i}", "weak", i / 100)
        observe(metric, f"u{i}", 1.0, 10.0)

    plan = _explained(lambda: fold(experiment, [f"u{i}" for i in range(UNITS)]))

    looked_at = sum(
        node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Join Filter", 0)
        + node.get("Rows Removed by Filter", 0))
        for node in _nodes(plan)
    )  # fmt: skip
    assert looked_at < 50 * UNITS
    assert set(experiment.exposures.values_list("values__0", flat=True)) == {1.0}
