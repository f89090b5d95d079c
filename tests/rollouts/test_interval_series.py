"""Intervals as arrays: slices where they exist, clusters of the control, possible counts."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from apps.rollouts.evidence import Arm, Interval, SliceCounts
from apps.rollouts.interval_series import ERRORS, UNANSWERED, series_of_latency, series_of_rate
from contract.messages import ClusterCounts

AT = datetime(2026, 1, 1, tzinfo=UTC)


def interval(canary: Arm, control: Arm | None = None, step: int = 0) -> Interval:
    return Interval(step, AT, canary, control or Arm(n=90, errors=3, assigned=95))


def test_an_interval_without_slices_is_its_first_slice_beside_ones_that_have_them() -> None:
    parts = [SliceCounts(2, 1, 3, 0) for _ in range(5)]
    rows = [interval(Arm(n=10, errors=5, slices=parts)), interval(Arm(n=7, errors=1), step=1)]
    series = series_of_rate(rows, ERRORS)
    assert series.counts.canary_n.tolist() == [[2, 2, 2, 2, 2], [7, 0, 0, 0, 0]]
    assert series.counts.control_events.tolist() == [[3, 0, 0, 0, 0]] * 2
    assert series.steps.tolist() == [0, 1]


def test_without_any_slices_the_interval_is_one() -> None:
    series = series_of_rate([interval(Arm(n=7, errors=1))], ERRORS)
    assert series.counts.canary_events.tolist() == [[1]]


def test_an_end_in_a_later_interval_makes_no_impossible_counts() -> None:
    late = interval(Arm(assigned=2, unanswered=5))
    assert series_of_rate([late], UNANSWERED).counts.canary_events.tolist() == [[2]]


def test_slow_answers_are_counted_by_interval_and_by_cluster_of_the_control() -> None:
    clusters = {4: ClusterCounts(latency={80: 5, 99: 2}), 31: ClusterCounts(latency={98: 1})}
    control = Arm(latency={80: 5, 98: 1, 99: 2}, clusters=clusters)
    series = series_of_latency([interval(Arm(latency={99: 4, 98: 1}), control)] * 2, 98)
    assert series.counts.canary_n.tolist() == [[5], [5]]
    assert series.counts.canary_events.tolist() == [[4], [4]]
    assert series.counts.control_events.tolist() == [[2], [2]]
    assert series.clusters is not None
    assert series.clusters.events[-1, 4] == 4.0
    assert series.clusters.n[:, 31].tolist() == [0.0, 1.0, 2.0]


def test_no_intervals_are_empty_arrays() -> None:
    assert series_of_latency([], 90).counts.canary_n.shape == (0, 1)
    np.testing.assert_array_equal(series_of_rate([], ERRORS).steps, np.zeros(0))
