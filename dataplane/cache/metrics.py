"""What `/metrics` tells of the cache."""

from __future__ import annotations

from collections.abc import Iterable

from dataplane.cache.store import Cache
from dataplane.metrics import Labels, Page, VersionStats


def add_cache(page: Page, cache: Cache, rows: Iterable[tuple[Labels, VersionStats]]) -> None:
    """Add the families of the cache; `rows` are the versions' counters."""
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
        "Requests that the cache had no answer for, by version.",
        [(labels, stats.cache_misses) for labels, stats in used],
    )
    page.family(
        "interlock_cache_entries",
        "gauge",
        "Answers kept in this process.",
        [((), len(cache.local))],
    )
    page.family(
        "interlock_cache_bytes",
        "gauge",
        "Bytes held by the cache of this process: answers, and requests remembered as read.",
        [((("kind", "answers"),), cache.local.bytes), ((("kind", "requests"),), cache.memo.bytes)],
    )
    page.family(
        "interlock_cache_evictions_total",
        "counter",
        "Answers that the bounds pushed out.",
        [((), cache.local.evictions)],
    )
    if cache.shared is not None:
        page.family(
            "interlock_cache_shared_failures_total",
            "counter",
            "Calls to Redis, values in it and writes to it that failed, by reason.",
            [((("reason", k),), value) for k, value in sorted(cache.shared.failures.items())],
        )
