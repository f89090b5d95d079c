"""A mergeable latency histogram with logarithmic buckets.

Bucket `i` holds durations in `(bound(i − 1), bound(i)]` microseconds, `bound(i) = 2^(i / 8)`, so a
percentile of merged histograms is exact to one bucket, which is 9 % wide. Merging adds counts.
Bucket 0 holds everything up to 1 µs, the last bucket everything above 268 s.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from math import ceil

BUCKETS_PER_DOUBLING = 8
BUCKET_COUNT = 28 * BUCKETS_PER_DOUBLING + 2
BOUNDS_US: tuple[float, ...] = tuple(
    2.0 ** (i / BUCKETS_PER_DOUBLING) for i in range(BUCKET_COUNT - 1)
)

Counts = dict[int, int]


def index_of(duration_us: float) -> int:
    return bisect_left(BOUNDS_US, duration_us)


def upper_bound_us(index: int) -> float:
    """Return the upper bound of bucket `index` in microseconds; infinity for the last bucket."""
    return BOUNDS_US[index] if index < len(BOUNDS_US) else float("inf")


def merge(parts: Iterable[Mapping[int, int]]) -> Counts:
    """Return the sum of sparse histograms `{bucket index: count}`."""
    total: Counts = {}
    for part in parts:
        for index, count in part.items():
            total[index] = total.get(index, 0) + count
    return total


def total(counts: Mapping[int, int]) -> int:
    """Return the number of durations in the histogram."""
    return sum(counts.values())


def quantile_index(counts: Mapping[int, int], q: float) -> int | None:
    """Return the bucket of the `q`-quantile (nearest rank), or None for an empty histogram."""
    n = total(counts)
    if n == 0:
        return None
    rank = max(1, ceil(q * n - 1e-9))
    cumulative = 0
    for index in sorted(counts):
        cumulative += counts[index]
        if cumulative >= rank:
            return index
    return max(counts)


def quantile_us(counts: Mapping[int, int], q: float) -> float | None:
    """Return the upper bound, in microseconds, of the bucket of the `q`-quantile."""
    index = quantile_index(counts, q)
    return None if index is None else upper_bound_us(min(index, len(BOUNDS_US) - 1))


def count_above(counts: Mapping[int, int], index: int) -> int:
    """Return the number of durations in buckets above `index`: the exceedances of its bound."""
    return sum(count for i, count in counts.items() if i > index)
