"""Telemetry windows become rows as they arrived."""

from __future__ import annotations

import pytest

from apps.rollouts.ingestion import apply_windows
from apps.rollouts.models import ShadowRow, TelemetryRow
from apps.rollouts.selectors.shadows import COUNTS
from contract.messages import Batch, ShadowWindow, TelemetryWindow
from tests.experiments.factories import NOW, NOW_MS

pytestmark = pytest.mark.django_db


def window(**fields: object) -> TelemetryWindow:
    values: dict[str, object] = {
        "model": "digits",
        "version": "2",
        "variant": "canary",
        "generation": 7,
        "split": "r1",
        "started_at_ms": NOW_MS,
        "ended_at_ms": NOW_MS + 1_000,
        "interval_started_at_ms": NOW_MS - 4_000,
        "requests": 10,
        "errors": 1,
        "units": 4,
        "cache_hits": 11,
        "latency": {80: 9, 96: 1},
    }
    return TelemetryWindow(**(values | fields))  # type: ignore[arg-type]


def shadow_window(**fields: object) -> ShadowWindow:
    values: dict[str, object] = {
        "model": "digits",
        "version": "2",
        "stable": "1",
        "generation": 7,
        "shadow": "s1",
        "started_at_ms": NOW_MS,
        "ended_at_ms": NOW_MS + 1_000,
        "compared": 8,
        "rows": 10,
        "flips": 1,
        "beyond_tolerance": 2,
        "largest_difference": 0.25,
        "rank_correlation_sum": 4.5,
        "ranked": 5,
        "errors": 2,
        "dropped": 3,
        "latency": {90: 8},
    }
    return ShadowWindow(**(values | fields))  # type: ignore[arg-type]


def batch(*windows: TelemetryWindow, sequence: int = 1) -> Batch:
    return Batch(instance="proxy-1", boot="b", sequence=sequence, windows=windows)


def test_a_window_becomes_a_row_with_all_it_counts() -> None:
    apply_windows([batch(window())], NOW)

    row = TelemetryRow.objects.get()
    assert (row.instance, row.model_name, row.version_number) == ("proxy-1", "digits", "2")
    assert (row.variant, row.split, row.generation) == ("canary", "r1", 7)
    assert (row.requests, row.errors, row.units, row.cache_hits) == (10, 1, 4, 11)
    assert row.started_at == NOW
    assert (row.ended_at - row.interval_started_at).total_seconds() == 5
    assert row.latency == {"80": 9, "96": 1}


def test_windows_of_many_batches_are_all_inserted() -> None:
    count = apply_windows([batch(window(), window(), sequence=n) for n in range(3)], NOW)

    assert count == TelemetryRow.objects.count() == 6


def test_an_instant_that_no_calendar_reaches_is_the_senders_fault() -> None:
    with pytest.raises(ArithmeticError):
        apply_windows([batch(window(ended_at_ms=2**62))], NOW)


def test_a_shadow_window_becomes_a_row_with_all_it_counts() -> None:
    values = shadow_window()
    sent = Batch(instance="proxy-1", boot="b", sequence=1, shadows=(values,))

    assert apply_windows([sent], NOW) == 1

    row = ShadowRow.objects.get()
    assert (row.instance, row.model_name, row.version_number) == ("proxy-1", "digits", "2")
    assert (row.stable_number, row.shadow, row.generation) == ("1", "s1", 7)
    assert (row.started_at, (row.ended_at - NOW).total_seconds()) == (NOW, 1)
    assert row.latency == {"90": 8}
    counts = (*COUNTS, "largest_difference", "rank_correlation_sum")
    assert [getattr(row, name) for name in counts] == [getattr(values, name) for name in counts]
