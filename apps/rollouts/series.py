"""Intervals as arrays: what the judges compare, in the order of time.

A rate's exposures and events are counted by slice where an interval kept them, else the whole
interval is one slice; latency is counted by interval. Clusters are the control's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from apps.rollouts.comparison import Series
from apps.rollouts.dispersion import Array, Clusters, History, sums
from apps.rollouts.eprocess import Counts
from apps.rollouts.evidence import Arm, Interval
from apps.rollouts.segments import SLICES
from contract.histogram import count_above, total
from contract.messages import CLUSTERS, ClusterCounts

ERRORS = ("n", "errors")
UNANSWERED = ("assigned", "unanswered")


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
    counts = Counts(*(np.array(column, dtype=np.float64).reshape(shape) for column in columns))
    grouped = [[getattr(each, name) for name in names] for _, _, each in _clusters(intervals)]
    return Series(counts, _steps(intervals), _by_cluster(intervals, grouped), before)


def series_of_latency(intervals: Sequence[Interval], index: int) -> Series:
    """Return the series of answers slower than a bucket of the histogram."""
    columns = [
        [[count(arm(each), index)] for each in intervals]
        for arm in (_canary, _control)
        for count in (_answers, _slower)
    ]
    shape = (len(intervals), 1)
    counts = Counts(*(np.array(column, dtype=np.float64).reshape(shape) for column in columns))
    return Series(counts, _steps(intervals), _by_cluster(intervals, _slow_ones(intervals, index)))


def is_by_client(intervals: Sequence[Interval]) -> bool:
    """Say whether requests came without a unit, so that callers are what is alike."""
    grouped = [each for _, _, each in _clusters(intervals)]
    return bool(grouped) and not any(each.units for each in grouped)


def _canary(interval: Interval) -> Arm:
    return interval.canary


def _control(interval: Interval) -> Arm:
    return interval.control


def _answers(arm: Arm, _: int) -> int:
    return total(arm.latency)


def _slower(arm: Arm, index: int) -> int:
    return count_above(arm.latency, index)


def _slices(arm: Arm, name: str, width: int) -> list[int]:
    if width > 1 and arm.slices:
        return [getattr(each, name) for each in arm.slices]
    return [getattr(arm, name)] + [0] * (width - 1)


def _steps(intervals: Sequence[Interval]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([each.step_index for each in intervals], dtype=np.int64)


def _clusters(intervals: Sequence[Interval]) -> list[tuple[int, int, ClusterCounts]]:
    return [
        (position, cluster, counts)
        for position, each in enumerate(intervals)
        for cluster, counts in each.control.clusters.items()
    ]


def _by_cluster(
    intervals: Sequence[Interval], grouped: Sequence[Sequence[int]] | Array
) -> Clusters | None:
    """Put what was counted of each cluster, `[exposures, events]`, where it belongs."""
    where = _clusters(intervals)
    if not where:
        return None
    table = np.zeros((2, len(intervals), CLUSTERS))
    rows = np.fromiter((row for row, _, _ in where), dtype=np.int64, count=len(where))
    columns = np.fromiter((column for _, column, _ in where), dtype=np.int64, count=len(where))
    table[:, rows, columns % CLUSTERS] = np.asarray(grouped, dtype=np.float64).T
    return Clusters(sums(table[0], axis=-2), sums(table[1], axis=-2))


def _slow_ones(intervals: Sequence[Interval], index: int) -> Array:
    """Answers, and those slower than `index`, of each cluster; all histograms at once."""
    latencies = [each.latency for _, _, each in _clusters(intervals)]
    sizes = np.fromiter(map(len, latencies), dtype=np.int64, count=len(latencies))
    buckets = np.fromiter(chain.from_iterable(latencies), dtype=np.int64)
    counts = np.fromiter(chain.from_iterable(each.values() for each in latencies), dtype=np.float64)
    owner = np.repeat(np.arange(len(latencies)), sizes)
    answers = np.bincount(owner, counts, len(latencies))
    slower = np.bincount(owner, np.where(buckets > index, counts, 0.0), len(latencies))
    return np.stack([answers, slower], axis=-1)
