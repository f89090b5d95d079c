"""The metrics of `/metrics`, with their names."""

from __future__ import annotations

import asyncio
import time
from time import monotonic

from dataplane.admission import Admission
from dataplane.cache.metrics import add_cache
from dataplane.ends import ENDS
from dataplane.heartbeat import Heartbeat
from dataplane.metrics import Labels, Page, VersionStats
from dataplane.serving import Serving, VersionRuntime
from dataplane.shadow.mirror import Shadows
from dataplane.stream import Publisher
from dataplane.sync import Sync
from dataplane.triton.metrics import add_circuits, add_endpoints

Row = tuple[Labels, VersionStats, VersionRuntime | None]


# Versions that are processed per turn of the loop.
ROWS_AT_ONCE = 50
DAY_MS = 86_400_000


async def collect(
    serving: Serving, publisher: Publisher, sync: Sync, heartbeats: list[Heartbeat]
) -> Page:
    """Return the metrics of this process, collected a few versions at a time."""
    page = Page()
    rows: list[Row] = [
        ((("model_name", name), ("model_version", version)), stats, runtime)
        for name, version, stats, runtime in serving.stats()
    ]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        _add_versions(page, rows[start : start + ROWS_AT_ONCE])
        _add_queues(page, rows[start : start + ROWS_AT_ONCE])
        await asyncio.sleep(0)
    add_endpoints(page, serving.triton)
    add_circuits(page, [(labels, runtime.replicas) for labels, _, runtime in rows if runtime])
    _add_ages(page, serving)
    _add_sheds(page, serving.admission.sheds)
    _add_refusals(page, publisher)
    _add_quotas(page, serving.admission)
    if serving.cache is not None:
        add_cache(page, serving.cache, [(labels, stats) for labels, stats, _ in rows])
    if serving.shadows is not None:
        _add_shadows(page, serving.shadows)
    _add_instance(page, serving, publisher, sync, heartbeats)
    return page


def _add_versions(page: Page, rows: list[Row]) -> None:
    page.histograms(
        "model_inference_latency_seconds",
        "Time from a request's arrival to its answer.",
        [(labels, stats.latency) for labels, stats, _ in rows],
    )
    page.family(
        "model_predictions_total",
        "counter",
        "Requests by version and status.",
        [
            ((*labels, ("status", status)), value)
            for labels, stats, _ in rows
            for status, value in sorted(stats.predictions.items())
        ],
    )
    page.family(
        "interlock_request_ends_total",
        "counter",
        "How requests ended for the version that they were assigned to.",
        [
            ((*labels, ("end", end)), value)
            for labels, stats, _ in rows
            for end, value in zip(ENDS, stats.ends, strict=True)
            if value
        ],
    )
    page.histograms(
        "model_batch_size",
        "Rows of each batch sent to the version.",
        [(labels, stats.batch_size) for labels, stats, _ in rows],
    )
    page.family(
        "interlock_fallbacks_total",
        "counter",
        "Requests that the version failed and that fell back to stable.",
        [
            ((*labels, ("reason", reason)), value)
            for labels, stats, _ in rows
            for reason, value in sorted(stats.fallbacks.items())
        ],
    )


def _add_sheds(page: Page, sheds: dict[str, int]) -> None:
    page.family(
        "interlock_sheds_total",
        "counter",
        "Requests refused for lack of capacity: quota, full queue, or deadline.",
        [((("reason", reason),), value) for reason, value in sorted(sheds.items())],
    )


def _add_refusals(page: Page, publisher: Publisher) -> None:
    page.family(
        "interlock_outcomes_refused_total",
        "counter",
        "Outcomes refused, by metric (empty for an unknown name), reason and tenant.",
        [
            ((("metric", metric), ("reason", reason), ("tenant", tenant)), value)
            for (metric, reason, tenant), value in sorted(publisher.refusals.totals.items())
        ],
    )


def _add_quotas(page: Page, admission: Admission) -> None:
    ledger = admission.ledger
    is_leased = ledger is not None and ledger.is_leased(monotonic())
    page.family(
        "interlock_quotas_leased",
        "gauge",
        "1 while quotas are enforced across the fleet, 0 while by this instance alone.",
        [((), int(is_leased))] if admission.limited_lines() else [],
        merge="min",
    )
    page.family(
        "interlock_quota_instances",
        "gauge",
        "Instances that share the quotas, by the last count of Redis.",
        [((), ledger.instances)] if ledger is not None and admission.limited_lines() else [],
        merge="max",
    )


def _add_queues(page: Page, rows: list[Row]) -> None:
    live = [(labels, stats, runtime) for labels, stats, runtime in rows if runtime is not None]
    page.family(
        "interlock_queue_rows",
        "gauge",
        "Rows waiting for a batch of the version.",
        [(labels, sum(b.waiting_rows for b in runtime.batchers)) for labels, _, runtime in live],
    )
    page.family(
        "interlock_batches_in_flight",
        "gauge",
        "Batches of the version in flight.",
        [(labels, sum(b.in_flight for b in runtime.batchers)) for labels, _, runtime in live],
    )
    page.family(
        "interlock_breaker_state",
        "gauge",
        "Circuit breaker: 0 closed, 1 half-open, 2 open.",
        [(labels, runtime.breaker.state.value) for labels, _, runtime in live],
        merge="max",
    )
    page.family(
        "interlock_breaker_trips_total",
        "counter",
        "Number of times the circuit breaker opened.",
        [(labels, stats.trips) for labels, stats, _ in live],
    )


def _add_shadows(page: Page, shadows: Shadows) -> None:
    rows = [
        ((("model_name", name), ("model_version", version)), runtime)
        for name, version, runtime in shadows.runtimes()
    ]
    page.family(
        "interlock_shadow_copies_total",
        "counter",
        "Requests copied to a shadow, by result.",
        [
            ((*labels, ("result", result)), value)
            for labels, runtime in rows
            for result, value in sorted(runtime.stats.results.items())
        ],
    )
    page.family(
        "interlock_shadow_breaker_state",
        "gauge",
        "Circuit breaker of a shadow: 0 closed, 1 half-open, 2 open.",
        [(labels, runtime.breaker.state.value) for labels, runtime in rows],
        merge="max",
    )
    page.family(
        "interlock_shadow_breaker_trips_total",
        "counter",
        "Number of times the circuit breaker of a shadow opened.",
        [(labels, runtime.stats.trips) for labels, runtime in rows],
    )
    page.family(
        "interlock_shadow_in_flight",
        "gauge",
        "Copied requests that wait, are in flight or are being compared, of all shadows.",
        [((), shadows.copies)],
    )
    page.family(
        "interlock_shadow_bytes",
        "gauge",
        "Bytes of memory that these copied requests use.",
        [((), shadows.held_bytes)],
    )


def _add_instance(
    page: Page, serving: Serving, publisher: Publisher, sync: Sync, heartbeats: list[Heartbeat]
) -> None:
    page.family(
        "interlock_table_generation",
        "gauge",
        "Generation of the applied routing table, 0 before the first.",
        [((), serving.generation)],
        merge="min",
    )
    page.family(
        "interlock_table_age_seconds",
        "gauge",
        "Time since the control plane last confirmed the table, or since the start.",
        [((), round(sync.table_age_s, 3))],
        merge="max",
    )
    page.family(
        "interlock_pinned",
        "gauge",
        "Models that an operator pinned to stable, * for all of them.",
        [((("model_name", name),), 1) for name in sorted(serving.pinned)],
        merge="max",
    )
    page.family(
        "interlock_table_refusals_total", "counter", "Tables refused.", [((), sync.refusals)]
    )
    page.family(
        "interlock_telemetry_dropped_total",
        "counter",
        "Messages dropped because the spool was full, by stream.",
        [((("stream", stream),), value) for stream, value in sorted(publisher.dropped.items())],
    )
    page.family(
        "interlock_spool_bytes",
        "gauge",
        "Bytes on disk that wait to be sent.",
        [((), publisher.spool_bytes)],
    )
    page.family(
        "interlock_loop_failures_total",
        "counter",
        "Turns of a background loop that failed.",
        [((("loop", item.name),), item.failures) for item in heartbeats],
    )
    page.family(
        "interlock_loop_age_seconds",
        "gauge",
        "Time since the last turn of a background loop.",
        [((("loop", item.name),), round(item.age_s, 3)) for item in heartbeats],
        merge="max",
    )


def _add_ages(page: Page, serving: Serving) -> None:
    """Add the age of the stable version of each model that got requests."""
    table = serving.table
    if table is None:
        return
    now_ms = time.time() * 1000
    ages: dict[str, float] = {}
    for name, _, _, _ in serving.stats():
        route = table.models.get(name)
        if name in ages or route is None or route.stable is None:
            continue
        created_at_ms = route.versions[route.stable].created_at_ms
        if created_at_ms > 0:
            ages[name] = round((now_ms - created_at_ms) / DAY_MS, 4)
    page.family(
        "model_age_days",
        "gauge",
        "Days since the model's stable version was registered.",
        [((("model_name", name),), age) for name, age in ages.items()],
        merge="max",
    )
