"""The metrics of the cache."""

from __future__ import annotations

from collections.abc import Iterable

from dataplane.cache.store import Cache
from dataplane.metrics import Labels, Page, VersionStats


def add_cache(page: Page, cache: Cache, rows: Iterable[tuple[Labels, VersionStats]]) -> None:
    """Add the metrics of the cache; `rows` are the versions' counters."""
    used = [(labels, stats) for labels, stats in rows if stats.cache_hits or stats.cache_misses]
    page.family(
        "interlock_cache_hits_total",
        "counter",
        "Requests answered from the cache, by version and tier.",
        [
            ((*labels, ("tier", tier)), value)
            for labels, stats in used
            for tier, value in sorted(stats.cache_hits.items())
        ],
    )
    page.family(
        "interlock_cache_misses_total",
        "counter",
        "Cache misses by version.",
        [(labels, stats.cache_misses) for labels, stats in used],
    )
    page.family(
        "interlock_cache_entries",
        "gauge",
        "Answers cached in this process.",
        [((), len(cache.local))],
    )
    page.family(
        "interlock_cache_bytes",
        "gauge",
        "Bytes of the cache of this process: answers, and parsed requests.",
        [((("kind", "answers"),), cache.local.bytes), ((("kind", "requests"),), cache.memo.bytes)],
    )
    page.family(
        "interlock_cache_evictions_total",
        "counter",
        "Answers evicted because of the size limits.",
        [((), cache.local.evictions)],
    )
    if cache.shared is not None:
        page.family(
            "interlock_cache_shared_failures_total",
            "counter",
            "Failed Redis calls, corrupt values and dropped writes, by reason.",
            [((("reason", k),), value) for k, value in sorted(cache.shared.failures.items())],
        )
