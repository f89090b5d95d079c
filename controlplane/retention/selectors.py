"""Retention periods, current sizes and deletions, for page, API, CLI and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.conf import settings

from apps.lib.partitions import Freed, measure_size
from controlplane.models import RetentionRun
from controlplane.retention.declared import KINDS, Kind
from controlplane.retention.drops import RULES


@dataclass(frozen=True)
class Kept:
    """A kind with its setting, the approximate size of its tables and its last run, if any."""

    kind: Kind
    days: int
    size: Freed
    run: RetentionRun | None


def kept_kinds() -> list[Kept]:
    """Return all kinds in the order of their declaration."""
    runs = RetentionRun.objects.in_bulk()
    return [
        Kept(
            kind,
            settings.RETENTION_DAYS[kind.name],
            sum((measure_size(table) for table in RULES[kind.name].tables), Freed()),
            runs.get(kind.name),
        )
        for kind in KINDS
    ]


def summary() -> dict[str, Any]:
    """Return the total freed space, and the kinds that are behind or failed."""
    runs = list(RetentionRun.objects.all())
    return {
        "rows_freed": sum(run.rows_total for run in runs),
        "bytes_freed": sum(run.bytes_total for run in runs),
        "last_freed_at": max((run.freed_at for run in runs if run.freed_at), default=None),
        "behind": [run.name for run in runs if run.is_behind],
        "failed": [run.name for run in runs if run.error],
    }
