"""Converts intervals to arrays for the checks, in the order of time.

A rate's exposures and events are counted by slice where an interval kept them, else the whole
interval is one slice; latency is counted by interval. Clusters are the control's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from apps.rollouts.comparison import Series
from apps.rollouts.dispersion import Array, Clusters, History, Integers, sums
from apps.rollouts.eprocess import BucketCounts, Counts
from apps.rollouts.evidence import COLUMNS, Arm, Interval, SliceCounts
from apps.rollouts.segments import SLICES
from contract.messages import CLUSTERS, ClusterCounts

ERRORS = ("n", "errors")
UNANSWERED = ("assigned", "unanswered")


def has_slices(intervals: Sequence[Interval]) -> bool:
    """Return whether intervals are divided into slices."""
    return any(each.canary.slices for each in intervals)


def series_of_rate(
    intervals: Sequence[Interval], names: tuple[str, str], before: History | None = None
) -> Series:
    """Return the series of one rate; `names` are the Arm fields of its exposures and events."""
    width = SLICES if has_slices(intervals) else 1
    columns = [COLUMNS.index(name) for name in names]
    n1, a = _tables([each.canary for each in intervals])[:, :width, columns].transpose(2, 0, 1)
    n0, b = _tables([each.control for each in intervals])[:, :width, columns].transpose(2, 0, 1)
    # A request may end in a later interval than the one that counted its unit.
    counts = Counts(n1, np.minimum(a, n1), n0, np.minimum(b, n0))
    return Series(counts, _steps(intervals), _of_rate(intervals, names), before)


def series_of_latency(intervals: Sequence[Interval], index: int) -> Series:
    """Return the series of answers slower than a bucket of the histogram."""
    return series_of_latencies(intervals, [index])[0]


def series_of_latencies(intervals: Sequence[Interval], indexes: Sequence[int]) -> list[Series]:
    """Return for each bucket of `indexes` the series of answers slower than it."""
    steps = _steps(intervals)
    canary = Histograms.of_arms([each.canary for each in intervals])
    control = Histograms.of_arms([each.control for each in intervals])
    n1, n0 = canary.answers[:, None], control.answers[:, None]
    clusters = _of_latencies(intervals, indexes)
    return [
        Series(
            Counts(n1, canary.slower(index)[:, None], n0, control.slower(index)[:, None]),
            steps,
            each,
        )
        for index, each in zip(indexes, clusters, strict=True)
    ]


@dataclass(frozen=True)
class Histograms:
    """Histograms of `size` places in one table: the place, bucket and count of each entry."""

    size: int
    place: Integers
    bucket: Integers
    count: Integers

    @classmethod
    def of_arms(cls, arms: Sequence[Arm]) -> Histograms:
        """The latency of each arm, whose place is its position."""
        histograms = [each.histogram for each in arms] or [np.zeros((2, 0), dtype=np.int64)]
        bucket, count = np.concatenate(histograms, axis=1)
        lengths = [each.shape[1] for each in histograms]
        return cls(len(arms), np.repeat(np.arange(len(histograms)), lengths), bucket, count)

    @cached_property
    def answers(self) -> Array:
        """The number of answers in each place."""
        return np.bincount(self.place, self.count, self.size).astype(np.float64)

    def slower(self, index: int) -> Array:
        """Return the number of answers beyond a bucket in each place."""
        beyond = self.bucket > index
        counts = np.bincount(self.place[beyond], self.count[beyond], self.size)
        return counts.astype(np.float64)

    def merged(self) -> dict[int, int]:
        """Return the sum of all histograms."""
        counts = np.bincount(self.bucket, self.count) if self.bucket.size else np.zeros(0)
        return {int(index): int(counts[index]) for index in np.flatnonzero(counts)}


def is_by_client(intervals: Sequence[Interval]) -> bool:
    """Return whether requests came without a unit, so that clusters are those of clients."""
    counted = [each.control.grouped.counts for each in intervals if each.control.clusters]
    units = COLUMNS.index("units")
    return bool(counted) and not any(table[:, units].any() for table in counted)


def by_instance(interval: Interval, names: tuple[str, str]) -> dict[str, BucketCounts]:
    canary, control = interval.canary.instances, interval.control.instances
    both = {name: (canary.get(name), control.get(name)) for name in canary.keys() | control.keys()}
    return {
        name: BucketCounts(*_pair(ours, names), *_pair(theirs, names))
        for name, (ours, theirs) in both.items()
    }


def by_cluster(interval: Interval, names: tuple[str, str]) -> dict[str, BucketCounts]:
    """Return the counts of an interval by cluster of units."""
    canary, control = interval.canary.clusters, interval.control.clusters
    nothing = ClusterCounts()
    return {
        str(number): BucketCounts(
            *_of_cluster(canary.get(number, nothing), names),
            *_of_cluster(control.get(number, nothing), names),
        )
        for number in canary.keys() | control.keys()
    }


def _of_cluster(counts: ClusterCounts, names: tuple[str, str]) -> tuple[int, int]:
    n, events = (getattr(counts, name) for name in names)
    # A unit of an earlier interval may be left without an answer in this one.
    return max(n, events), events


def _pair(counts: SliceCounts | None, names: tuple[str, str]) -> tuple[int, int]:
    if counts is None:
        return 0, 0
    n, events = (getattr(counts, name) for name in names)
    # A unit that one instance counted may fail on another.
    return n, min(n, events)


def _tables(arms: Sequence[Arm]) -> Array:
    """All slices' counts, `(intervals, SLICES, columns)`."""
    return _rows([arm.table for arm in arms], (SLICES, len(COLUMNS) - 1))


def _rows(parts: Sequence[Array], shape: tuple[int, int]) -> Array:
    """Stack arrays of one shape, several times faster than `np.stack`."""
    result: Array = np.concatenate([np.zeros((0, shape[1])), *parts]).reshape(-1, *shape)
    return result


def _steps(intervals: Sequence[Interval]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([each.step_index for each in intervals], dtype=np.int64)


def _of_rate(intervals: Sequence[Interval], names: tuple[str, str]) -> Clusters | None:
    counts = _grouped(intervals)
    if counts is None:
        return None
    n, events = (counts[..., COLUMNS.index(name)] for name in names)
    return Clusters(sums(n, axis=-2), sums(np.minimum(events, n), axis=-2))


def _of_latencies(
    intervals: Sequence[Interval], indexes: Sequence[int]
) -> Sequence[Clusters | None]:
    """Count all answers and those slower than each of `indexes` by cluster, in one pass."""
    if not any(each.control.clusters for each in intervals):
        return [None] * len(indexes)
    cells = [each.control.grouped.cells for each in intervals]
    cluster, bucket, count = np.concatenate(cells, axis=1)
    interval = np.repeat(np.arange(len(cells)), [each.shape[1] for each in cells])
    shape = (len(cells), CLUSTERS)
    histograms = Histograms(shape[0] * shape[1], interval * CLUSTERS + cluster, bucket, count)
    answers = sums(histograms.answers.reshape(shape), axis=-2)
    return [
        Clusters(answers, sums(histograms.slower(index).reshape(shape), axis=-2))
        for index in indexes
    ]


def _grouped(intervals: Sequence[Interval]) -> Array | None:
    """Return the control's counts by interval and cluster; None if no cluster was counted."""
    if not any(each.control.clusters for each in intervals):
        return None
    return _rows([each.control.grouped.counts for each in intervals], (CLUSTERS, len(COLUMNS)))
