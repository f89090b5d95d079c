"""Stores telemetry and shadow windows as rows.

The caller makes sure that each batch is stored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from apps.rollouts.epochs import lock_epoch_shared, lost_generations
from apps.rollouts.models import ShadowRow, TelemetryRow
from contract.histogram import Counts
from contract.messages import Batch, ShadowWindow, TelemetryWindow

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def apply_windows(batches: Sequence[Batch], now: datetime) -> int:
    """Insert the windows of `batches`; return their number. Runs in the caller's transaction.

    Windows of lost generations are left out: they belong to tables of another database.
    """
    lock_epoch_shared()
    lost = lost_generations()
    rows = [
        _row(batch.instance, window)
        for batch in batches
        for window in batch.windows
        if window.generation not in lost
    ]
    shadows = [
        _shadow_row(batch.instance, window)
        for batch in batches
        for window in batch.shadows
        if window.generation not in lost
    ]
    TelemetryRow.objects.bulk_create(rows, batch_size=1_000)
    ShadowRow.objects.bulk_create(shadows, batch_size=1_000)
    return len(rows) + len(shadows)


def _row(instance: str, window: TelemetryWindow) -> TelemetryRow:
    return TelemetryRow(
        instance=instance,
        model_name=window.model,
        version_number=window.version,
        variant=window.variant,
        split=window.split,
        generation=window.generation,
        started_at=_instant(window.started_at_ms),
        ended_at=_instant(window.ended_at_ms),
        interval_started_at=_instant(window.interval_started_at_ms),
        requests=window.requests,
        errors=window.errors,
        fallbacks=window.fallbacks,
        units=window.units,
        unit_errors=window.unit_errors,
        anonymous=window.anonymous,
        anonymous_errors=window.anonymous_errors,
        cache_hits=window.cache_hits,
        assigned=window.assigned,
        unanswered=window.unanswered,
        assigned_requests=window.assigned_requests,
        ends=msgspec.to_builtins(window.ends),
        clusters=msgspec.to_builtins(window.clusters, str_keys=True),
        latency=_as_json(window.latency),
    )


def _shadow_row(instance: str, window: ShadowWindow) -> ShadowRow:
    return ShadowRow(
        instance=instance,
        model_name=window.model,
        version_number=window.version,
        stable_number=window.stable,
        shadow=window.shadow,
        generation=window.generation,
        started_at=_instant(window.started_at_ms),
        ended_at=_instant(window.ended_at_ms),
        compared=window.compared,
        rows=window.rows,
        flips=window.flips,
        beyond_tolerance=window.beyond_tolerance,
        largest_difference=window.largest_difference,
        rank_correlation_sum=window.rank_correlation_sum,
        ranked=window.ranked,
        errors=window.errors,
        dropped=window.dropped,
        latency=_as_json(window.latency),
    )


def _as_json(latency: Counts) -> dict[str, int]:
    """Return the counts with text keys, as JSON needs; readers convert them back."""
    return {str(index): count for index, count in latency.items()}


def _instant(at_ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=at_ms)
