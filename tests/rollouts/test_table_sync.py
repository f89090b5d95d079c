"""What changes without a rollout is published, and looking costs little while nothing does."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from apps.lib.clock import database_now
from apps.models.models import (
    ApiKey,
    Deployment,
    LiveSplit,
    ModelVersion,
    RegisteredModel,
    ServingCluster,
    ServingPolicy,
    Tenant,
)
from apps.rollouts import table_sync
from apps.rollouts.models import PublishedTable
from apps.rollouts.publication import publish_table
from apps.rollouts.snapshots import read_snapshot
from apps.rollouts.table_sync import publish_drift
from contract.routing import TableError
from tests.rollouts.factories import latest, make_baking, make_model

pytestmark = pytest.mark.django_db


def test_nothing_is_compiled_while_nothing_changes(django_assert_num_queries: Any) -> None:
    make_model()
    assert publish_drift()
    publish_drift()
    with django_assert_num_queries(3):
        # One statement between the two of a savepoint.
        assert not publish_drift()


CHANGES: list[Callable[[], Any]] = [
    lambda: RegisteredModel.objects.update(timeout_ms=77),
    lambda: Deployment.objects.update(state="loading"),
    lambda: Deployment.objects.filter(version__number=3).delete(),
    lambda: LiveSplit.objects.update(document={}),
    lambda: ModelVersion.objects.update(batched=False),
    lambda: ServingCluster.objects.update(endpoints=["http://other:8000"]),
    lambda: ServingPolicy.objects.create(key_required=True),
    lambda: Tenant.objects.create(name="shop"),
    lambda: ApiKey.objects.all().delete(),
    lambda: PublishedTable.objects.all().delete(),
]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_table_is_made_from_is_looked_at(change: Callable[[], Any]) -> None:
    make_baking(make_model())
    tenant = Tenant.objects.create(name="old")
    ApiKey.objects.create(tenant=tenant, digest="d" * 64, created_at=database_now())
    for _ in range(2):
        publish_drift()
    change()
    assert publish_drift()


def test_what_changed_is_published() -> None:
    make_model()
    publish_drift()
    RegisteredModel.objects.update(timeout_ms=77)
    publish_drift()
    assert latest().models["digits"].timeout_ms == 77


def test_a_table_that_could_not_be_made_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    make_model()

    def refuse(**_: Any) -> int:
        raise TableError("it contradicts itself")

    monkeypatch.setattr(table_sync, "publish_table", refuse)
    with pytest.raises(TableError):
        publish_drift()
    monkeypatch.setattr(table_sync, "publish_table", publish_table)
    assert publish_drift()


def test_all_that_a_snapshot_reads_is_watched() -> None:
    make_baking(make_model())
    with CaptureQueriesContext(connection) as queries:
        read_snapshot()
    sql = " ".join(query["sql"] for query in queries.captured_queries)
    assert set(re.findall(r'(?:FROM|JOIN) "(\w+)"', sql)) <= set(table_sync.WATCHED)
