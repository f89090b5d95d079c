"""The serving history: what served a model at a time, and who decided it.

Every publication stores a row for each model whose stable version, split or shadow it changes, in
the same transaction. Rows are never changed or pruned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec
from django.db import connection
from django.db.models import QuerySet

from apps.rollouts.models import PublishedTable, ServingChange
from contract.routing import ModelRoute, RoutingTable

# One index lookup per model, independent of the length of its history.
LATEST = """
    SELECT model.name, latest.stable, latest.split::text, latest.shadow::text
    FROM registry_registeredmodel AS model, LATERAL (
        SELECT stable, split, shadow FROM rollouts_servingchange
        WHERE model_name = model.name ORDER BY id DESC LIMIT 1
    ) AS latest
"""
# Stable version, split and shadow, as they are stored.
Served = tuple[str, Any, Any]
NOTHING: Served = ("", None, None)


def record_changes(
    table: RoutingTable, stored: PublishedTable, causes: Mapping[str, tuple[str, str]]
) -> int:
    """Store a row for each model whose serving `table` changes; return their number.

    `causes` maps model names to reason and actor; other models get those of the `stored` table.
    Runs in the transaction, and under the lock, of the publication.
    """
    before = _latest()
    default = (stored.reason, stored.actor)
    rows = [
        ServingChange(
            model_name=name,
            at=stored.published_at,
            generation=stored.generation,
            stable=stable,
            split=split,
            shadow=shadow,
            reason=causes.get(name, default)[0],
            actor=causes.get(name, default)[1],
        )
        for name, (stable, split, shadow) in _changed(before, table)
    ]
    ServingChange.objects.bulk_create(rows, batch_size=1_000)
    return len(rows)


def _changed(before: dict[str, Served], table: RoutingTable) -> Iterator[tuple[str, Served]]:
    for name, route in table.models.items():
        served = _served(route)
        if before.get(name, NOTHING) != served:
            yield name, served
    for name in before.keys() - table.models.keys():
        if before[name] != NOTHING:
            yield name, NOTHING


def _served(route: ModelRoute) -> Served:
    return route.stable or "", _plain(route.split), _plain(route.shadow)


def _plain(part: msgspec.Struct | None) -> Any:
    return None if part is None else msgspec.to_builtins(part)


def _latest() -> dict[str, Served]:
    with connection.cursor() as cursor:
        cursor.execute(LATEST)
        return {
            name: (stable, _parsed(split), _parsed(shadow))
            for name, stable, split, shadow in cursor.fetchall()
        }


def _parsed(text: str | None) -> Any:
    # Django stores None as JSON null.
    return None if text is None else msgspec.json.decode(text)


def serving_at(model_name: str, at: datetime) -> ServingChange | None:
    """Return the change in effect at a time; None before the first one."""
    return history_of(model_name).filter(at__lte=at).first()


def history_of(model_name: str) -> QuerySet[ServingChange]:
    """Return the changes of a model, newest first."""
    return ServingChange.objects.filter(model_name=model_name).order_by("-id")
