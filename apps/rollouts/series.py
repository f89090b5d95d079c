"""Intervals as arrays: what the judges compare, in the order of time.

A rate's exposures and events are counted by slice where an interval kept them, else the whole
interval is one slice; latency is counted by interval. Clusters are the control's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apps.rollouts.comparison import Series
from apps.rollouts.dispersion import Array, Clusters, History, sums
from apps.rollouts.eprocess import BucketCounts, Counts
from apps.rollouts.evidence import Arm, Interval, SliceCounts
from apps.rollouts.segments import SLICES
from contract.messages import CLUSTERS, ClusterCounts

ERRORS = ("n", "errors")
UNANSWERED = ("assigned", "unanswered")
# The columns of Grouped.counts.
COLUMNS = ("n", "errors", "assigned", "unanswered", "units")


def has_slices(intervals: Sequence[Interval]) -> bool:
    """Say whether seconds can be told apart."""
    return any(each.canary.slices for each in intervals)


def series_of_rate(
    intervals: Sequence[Interval], names: tuple[str, str], before: History | None = None
) -> Series:
    """Return the series of one rate; `names` are those of its exposures and events in an Arm."""
    width = SLICES if has_slices(intervals) else 1
    columns = [
        [_slices(arm(each), name, width) for each in intervals]
        for arm in (_canary, _control)
        for name in names
    ]
    shape = (len(intervals), width)
    n1, a, n0, b = (np.array(column, dtype=np.float64).reshape(shape) for column in columns)
    # An end may come in the interval after the one that assigned its unit.
    counts = Counts(n1, np.minimum(a, n1), n0, np.minimum(b, n0))
    return Series(counts, _steps(intervals), _of_rate(intervals, names), before)


def series_of_latency(intervals: Sequence[Interval], index: int) -> Series:
    """Return the series of answers slower than a bucket of the histogram."""
    canary_n, canary_events = _slower([each.canary for each in intervals], index)
    control_n, control_events = _slower([each.control for each in intervals], index)
    counts = Counts(canary_n, canary_events, control_n, control_events)
    return Series(counts, _steps(intervals), _of_latency(intervals, index))


def _slower(arms: Sequence[Arm], index: int) -> tuple[Array, Array]:
    """Answers, and those slower than `index`, `(intervals, 1)`; all histograms at once."""
    if not arms:
        return np.zeros((0, 1)), np.zeros((0, 1))
    histograms = [each.histogram for each in arms]
    bucket, count = np.concatenate(histograms, axis=1)
    place = np.repeat(np.arange(len(arms)), [each.shape[1] for each in histograms])
    answers = np.bincount(place, count, len(arms)).astype(np.float64)
    slower = np.bincount(place, np.where(bucket > index, count, 0), len(arms)).astype(np.float64)
    return answers[:, None], slower[:, None]


def is_by_client(intervals: Sequence[Interval]) -> bool:
    """Say whether requests came without a unit, so that callers are what is alike."""
    counts = _grouped(intervals)
    return counts is not None and not counts[..., COLUMNS.index("units")].any()


def by_instance(interval: Interval, names: tuple[str, str]) -> dict[str, BucketCounts]:
    """Return what each instance counted in an interval."""
    canary, control = interval.canary.instances, interval.control.instances
    both = {name: (canary.get(name), control.get(name)) for name in canary.keys() | control.keys()}
    return {
        name: BucketCounts(*_pair(ours, names), *_pair(theirs, names))
        for name, (ours, theirs) in both.items()
    }


def by_cluster(interval: Interval, names: tuple[str, str]) -> dict[str, BucketCounts]:
    """Return what was counted of each cluster of units in an interval."""
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
    # Whom an interval before assigned, this one may leave without an answer.
    return max(n, events), events


def _pair(counts: SliceCounts | None, names: tuple[str, str]) -> tuple[int, int]:
    if counts is None:
        return 0, 0
    n, events = (getattr(counts, name) for name in names)
    # A unit that came by one instance may fail by another.
    return n, min(n, events)


def _canary(interval: Interval) -> Arm:
    return interval.canary


def _control(interval: Interval) -> Arm:
    return interval.control


def _slices(arm: Arm, name: str, width: int) -> list[int]:
    if width > 1 and arm.slices:
        return [getattr(each, name) for each in arm.slices]
    return [getattr(arm, name)] + [0] * (width - 1)


def _steps(intervals: Sequence[Interval]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([each.step_index for each in intervals], dtype=np.int64)


def _of_rate(intervals: Sequence[Interval], names: tuple[str, str]) -> Clusters | None:
    counts = _grouped(intervals)
    if counts is None:
        return None
    n, events = (counts[..., COLUMNS.index(name)] for name in names)
    return Clusters(sums(n, axis=-2), sums(np.minimum(events, n), axis=-2))


def _of_latency(intervals: Sequence[Interval], index: int) -> Clusters | None:
    """All histograms at once: answers, and those slower than `index`, of each cluster."""
    if _grouped(intervals) is None:
        return None
    cells = [each.control.grouped.cells for each in intervals]
    cluster, bucket, count = np.concatenate(cells, axis=1)
    interval = np.repeat(np.arange(len(cells)), [each.shape[1] for each in cells])
    place, size = interval * CLUSTERS + cluster, len(cells) * CLUSTERS
    answers = np.bincount(place, count, size).astype(np.float64)
    slower = np.bincount(place, np.where(bucket > index, count, 0), size).astype(np.float64)
    shape = (len(cells), CLUSTERS)
    return Clusters(sums(answers.reshape(shape), axis=-2), sums(slower.reshape(shape), axis=-2))


def _grouped(intervals: Sequence[Interval]) -> Array | None:
    """The control's counts by interval and cluster; None where no cluster was counted."""
    if not any(each.control.clusters for each in intervals):
        return None
    return np.stack([each.control.grouped.counts for each in intervals])
