"""Exposures and outcomes are partitioned, also rows from before, and pages find them."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Sum
from django.test import Client

from apps.experiments.models import ExposureRow, OutcomeRow
from tests.experiments.factories import expose, make_draft, make_metric, observe

pytestmark = pytest.mark.django_db

BEFORE = ("experiments", "0006_one_index_per_key")


def partitions_of(table: str) -> set[str]:
    """Return the partitions that hold rows."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT DISTINCT tableoid::regclass::text FROM {table}")
        return {name for (name,) in cursor.fetchall()}


def migrate_to(*targets: tuple[str, str]) -> None:
    MigrationExecutor(connection).migrate(list(targets))


def exposures() -> list[dict[str, object]]:
    """Return the rows without Django's own key, which changes when rows move."""
    return [row | {"id": 0} for row in ExposureRow.objects.order_by("unit").values()]


def test_outcomes_are_divided_by_event_and_exposures_by_experiment() -> None:
    metric, experiment = make_metric(), make_draft(metric=make_metric("other"))
    for number in range(60):
        observe(metric, f"u{number}", number)
        expose(experiment, f"u{number}", "weak")

    assert len(partitions_of("experiments_outcomerow")) == 4
    assert len(partitions_of("experiments_exposurerow")) == 1


def test_rows_move_into_partitions_and_back_with_all_they_hold() -> None:
    metric, experiment = make_metric(), make_draft(metric=make_metric("other"))
    for number in range(20):
        observe(metric, f"u{number}", number)
        expose(experiment, f"u{number}", "weak", attributes={"country": "de"}, values=[1.0, None])
    met = exposures()
    newest = MigrationExecutor(connection).loader.graph.leaf_nodes("experiments")

    migrate_to(BEFORE)
    migrate_to(*newest)

    assert exposures() == met
    assert OutcomeRow.objects.aggregate(Sum("value"))["value__sum"] == sum(range(20))
    assert len(partitions_of("experiments_outcomerow")) == 4


@pytest.mark.parametrize("model", ["exposurerow", "outcomerow"])
def test_admin_lists_the_rows(model: str) -> None:
    metric, experiment = make_metric(), make_draft(metric=make_metric("other"))
    observe(metric, "unit-of-anna", 1.0)
    expose(experiment, "unit-of-anna", "weak")
    client = Client()
    client.force_login(User.objects.create_superuser("root"))

    page = client.get(f"/admin/experiments/{model}/", {"q": "unit-of-anna"})

    assert page.status_code == 200
    assert "unit-of-anna" in page.content.decode()
