"""Telemetry windows into rows, as they arrived; the caller keeps each batch from counting twice."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from apps.rollouts.models import TelemetryRow
from contract.messages import Batch, TelemetryWindow

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def apply_windows(batches: Sequence[Batch], now: datetime) -> int:
    """Insert the windows of `batches`; return how many. Runs in the caller's transaction."""
    rows = [_row(batch.instance, window) for batch in batches for window in batch.windows]
    TelemetryRow.objects.bulk_create(rows, batch_size=1_000)
    return len(rows)


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
        # JSON has text keys only; readers turn them back into bucket numbers.
        latency={str(index): count for index, count in window.latency.items()},
    )


def _instant(at_ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=at_ms)
