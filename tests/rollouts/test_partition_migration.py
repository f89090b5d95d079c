"""Tables with rows are divided without copying them, and can be united again."""

from __future__ import annotations

import importlib
from datetime import datetime, timedelta

import pytest
from django.db import connection, transaction

from apps.lib.clock import database_now
from apps.lib.partitions import list_leaves
from apps.rollouts.models import Evaluation, ShadowRow, TelemetryRow
from tests.rollouts.factories import make_baking, make_model, send, send_shadow

pytestmark = pytest.mark.django_db(transaction=True)

moves = importlib.import_module("apps.rollouts.migrations.0017_partitions")


def indexes(table: str) -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexname FROM pg_indexes WHERE tablename = %s", [table])
        return {name for (name,) in cursor.fetchall()}


def put_rows(now: datetime) -> None:
    with transaction.atomic():
        rollout = make_baking(make_model())
    for at in (now + timedelta(days=days) for days in (-400, -1, 0, 90)):
        send("digits", 1, at=at)
        send_shadow(at=at)
        Evaluation.objects.create(
            rollout=rollout, step_index=0, check_name="c", verdict="pass", reason="r", at=at
        )


def test_rows_indexes_and_numbers_are_the_same_before_and_after() -> None:
    tables = [table for table, _, _ in moves.DIVIDED]
    divided = {table: indexes(table) for table in tables}
    now = database_now()
    put_rows(now)
    before = rows()

    with transaction.atomic(), connection.schema_editor(atomic=False) as editor:
        moves.unite_all(None, editor)
    assert rows() == before
    assert list_leaves(tables[0]) == [tables[0]]
    last = send("digits", 1, at=now)
    with transaction.atomic(), connection.schema_editor(atomic=False) as editor:
        moves.divide_all(None, editor)

    TelemetryRow.objects.filter(pk=last.pk).delete()
    assert rows() == before
    assert {table: indexes(table) for table in tables} == divided
    assert send("digits", 1, at=now).pk > last.pk
    assert list_leaves(tables[0]) == [f"{tables[0]}_before", f"{tables[0]}_rest"]


def rows() -> list[list[tuple[object, ...]]]:
    return [
        sorted(table.objects.values_list("pk", at))
        for table, at in ((TelemetryRow, "ended_at"), (ShadowRow, "ended_at"), (Evaluation, "at"))
    ]
