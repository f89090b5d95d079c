"""Telemetry windows become intervals of their step; only closed ones count."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from apps.rollouts.evidence import EVALUATIONS_PER_FULL_READ, Interval, closed_intervals
from apps.rollouts.interval_store import freeze, frozen_intervals
from apps.rollouts.models import Instance, Rollout
from contract.messages import ClusterCounts
from tests.rollouts.factories import make_baking, make_instance, make_model, send

pytestmark = pytest.mark.django_db

NOW_LAG = timedelta(seconds=30)


@pytest.fixture
def rollout() -> Rollout:
    return make_baking(make_model())


def window(rollout: Rollout, variant: str, *, lag: timedelta = NOW_LAG, **fields: Any) -> None:
    at = rollout.started_at - lag
    defaults = {"split": str(rollout.pk), "generation": rollout.generation}
    defaults["interval_started_at"] = at
    number = 2 if variant == "canary" else 1
    send("digits", number, at=at, variant=variant, **(defaults | fields))


def intervals(rollout: Rollout) -> list[Interval]:
    return closed_intervals(rollout, 10, rollout.started_at)


def test_a_unit_assigned_in_one_window_and_answered_in_the_next_counts_once(
    rollout: Rollout,
) -> None:
    start = rollout.started_at - NOW_LAG
    for seconds, assigned, units in ((1, 5, 0), (2, 3, 5), (3, 0, 3)):
        began = start + timedelta(seconds=seconds)
        of = {"interval_started_at": start, "started_at": began}
        window(rollout, "canary", assigned=assigned, units=units, **of)
    (interval,) = intervals(rollout)
    assert (interval.canary.n, interval.canary.assigned) == (8, 8)
    assert sum(each.assigned for each in interval.canary.slices) == 8


def test_answered_units_of_an_older_data_plane_count_as_assigned(
    rollout: Rollout,
) -> None:
    window(rollout, "canary", units=5, anonymous=2, assigned=0)
    (interval,) = intervals(rollout)
    assert (interval.canary.n, interval.canary.assigned) == (7, 7)
    assert interval.canary.instances["i-1"].assigned == 7


def test_windows_of_all_instances_add_up(rollout: Rollout) -> None:
    for instance in ("i-1", "i-2"):
        window(rollout, "canary", instance=instance, units=3, unit_errors=1, anonymous=2)
        window(rollout, "stable", instance=instance, units=50, anonymous_errors=4)
    (interval,) = intervals(rollout)
    assert (interval.canary.n, interval.canary.errors) == (10, 2)
    assert (interval.control.n, interval.control.errors) == (100, 8)
    assert interval.canary.latency == {100: 120}


def test_clusters_of_all_instances_add_up_and_are_frozen_as_they_are(rollout: Rollout) -> None:
    counts = {"3": [2, 3, 1, 3, 1, {"80": 2, "81": 1}], "7": [1, 1, 0, 1, 0, {}]}
    for instance in ("i-1", "i-2"):
        window(rollout, "canary", instance=instance, clusters=counts, unanswered=1)
    (interval,) = freeze(rollout, intervals(rollout))
    assert interval.canary.unanswered == 2
    assert interval.canary.clusters == {
        3: ClusterCounts(4, 6, 2, 6, 2, {80: 4, 81: 2}),
        7: ClusterCounts(2, 2, 0, 2, 0),
    }
    assert frozen_intervals(rollout) == [interval]


def test_an_interval_that_may_still_get_windows_is_not_judged(rollout: Rollout) -> None:
    window(rollout, "canary", lag=timedelta(seconds=12))
    assert intervals(rollout) == []


@pytest.mark.parametrize(
    "fields", [{"split": "another"}, {"generation": 0}, {"variant": "explicit"}]
)
def test_traffic_of_other_rollouts_is_not_counted(rollout: Rollout, fields: dict[str, Any]) -> None:
    window(rollout, fields.pop("variant", "canary"), **fields)
    assert intervals(rollout) == []


def test_a_late_instances_windows_stay_with_the_step_it_served(rollout: Rollout) -> None:
    first = rollout.generation or 0
    rollout.step_generations = [first, first + 5]
    for generation in (first, first + 4, first + 5):
        window(rollout, "canary", generation=generation, units=1)
    counts = [(interval.step_index, interval.canary.n) for interval in intervals(rollout)]
    assert counts == [(0, 2), (1, 1)]


def test_slices_are_by_the_start_of_windows(rollout: Rollout) -> None:
    start = rollout.started_at - NOW_LAG
    for seconds, errors in ((1, 0), (4, 2), (10, 1)):
        at = start + timedelta(seconds=seconds)
        window(
            rollout,
            "canary",
            interval_started_at=start,
            started_at=at - timedelta(seconds=1),
            units=5,
            unit_errors=errors,
            assigned=6,
            unanswered=errors,
        )
    (interval,) = intervals(rollout)
    counts = [(each.n, each.errors) for each in interval.canary.slices]
    assert counts == [(5, 0), (5, 2), (0, 0), (0, 0), (5, 1)]
    assert [each.assigned for each in interval.canary.slices] == [6, 6, 0, 0, 6]
    (frozen,) = freeze(rollout, [interval])
    assert frozen == interval


def test_slices_are_longer_where_a_steps_intervals_are(rollout: Rollout) -> None:
    start = rollout.started_at - timedelta(minutes=5)
    began = start + timedelta(seconds=50)
    window(rollout, "canary", interval_started_at=start, started_at=began, units=5)
    closed = closed_intervals(rollout, 120, rollout.started_at, lengths_s=[120])
    assert [each.n for each in closed[0].canary.slices] == [0, 0, 5, 0, 0]


def test_slices_are_never_shorter_than_two_seconds(rollout: Rollout) -> None:
    start = rollout.started_at - timedelta(seconds=20)
    for seconds in (0, 1, 2, 3):
        began = start + timedelta(seconds=seconds)
        window(rollout, "canary", interval_started_at=start, started_at=began, units=5)
    closed = closed_intervals(rollout, 4, rollout.started_at)
    assert [each.n for each in closed[0].canary.slices] == [10, 10, 0, 0, 0]


def test_an_error_in_a_later_slice_moves_to_a_slice_with_units(
    rollout: Rollout,
) -> None:
    start = rollout.started_at - NOW_LAG
    for seconds, units, errors in ((1, 5, 0), (6, 0, 3)):
        began = start + timedelta(seconds=seconds)
        of = {"interval_started_at": start, "started_at": began}
        window(rollout, "canary", units=units, unit_errors=errors, **of)
    (interval,) = intervals(rollout)
    assert [(each.n, each.errors) for each in interval.canary.slices][:3] == [
        (5, 3),
        (0, 0),
        (0, 0),
    ]


def test_a_unit_left_without_an_answer_in_a_later_interval_counts_there(
    rollout: Rollout,
) -> None:
    window(rollout, "canary", units=0, assigned=2, unanswered=5, requests=0, latency={})
    (interval,) = intervals(rollout)
    assert (interval.canary.assigned, interval.canary.unanswered) == (5, 5)
    assert sum(each.assigned for each in interval.canary.slices) == 5
    assert all(each.unanswered <= each.assigned for each in interval.canary.slices)


def test_only_slower_counts_of_clusters_latency_are_stored(rollout: Rollout) -> None:
    counts = {"3": [2, 3, 1, 3, 1, {"80": 2, "85": 1, "91": 4}]}
    window(rollout, "stable", clusters=counts)
    (interval,) = freeze(rollout, intervals(rollout), edges=[82, 90])
    assert interval.control.clusters[3].latency == {82: 2, 90: 1, 91: 4}


def test_frozen_intervals_are_parsed_once(rollout: Rollout) -> None:
    window(rollout, "canary")
    freeze(rollout, intervals(rollout))
    (first,) = frozen_intervals(rollout)
    window(rollout, "canary", lag=NOW_LAG + timedelta(seconds=10))
    freeze(rollout, intervals(rollout))
    again, second = frozen_intervals(rollout)
    assert again is first
    assert second.started_at < first.started_at
    assert frozen_intervals(rollout, 1) == [first]


@pytest.fixture
def live(rollout: Rollout) -> None:
    """Two instances report, now and in the minute of the tests."""
    for name in ("i-1", "i-2"):
        make_instance(name, reported_at=rollout.started_at + timedelta(minutes=1))


def later(rollout: Rollout, seconds: float) -> list[tuple[int, int]]:
    """Return canary and control of the intervals that are closed this long after the start."""
    at = rollout.started_at + timedelta(seconds=seconds)
    return [(each.canary.n, each.control.n) for each in closed_intervals(rollout, 10, at)]


def hear(rollout: Rollout, instance: str, began_s: float, until_s: float) -> None:
    """A window of each version, from `until_s` − 1 in the interval that began at `began_s`."""
    for variant, n in (("canary", 5), ("stable", 95)):
        window(
            rollout,
            variant,
            lag=timedelta(seconds=-until_s),
            started_at=rollout.started_at + timedelta(seconds=until_s - 1),
            interval_started_at=rollout.started_at + timedelta(seconds=began_s),
            instance=instance,
            units=n,
        )


def test_an_instance_whose_windows_are_late_is_waited_for(rollout: Rollout, live: None) -> None:
    hear(rollout, "i-1", 0, 10)
    hear(rollout, "i-2", 0, 4)
    assert later(rollout, 13) == []
    hear(rollout, "i-2", 0, 10)
    assert later(rollout, 24) == [(15, 285)]


def test_a_silent_instance_delays_an_interval_only_briefly(rollout: Rollout, live: None) -> None:
    for began_s in (0, 10, 20, 30, 40):
        hear(rollout, "i-1", began_s, began_s + 10)
    hear(rollout, "i-2", 0, 4)
    assert later(rollout, 32) == []
    assert later(rollout, 33) == [(10, 190)]
    assert later(rollout, 43) == [(10, 190), *[(5, 95)] * 3]


def test_an_instance_without_reports_delays_nothing(rollout: Rollout, live: None) -> None:
    Instance.objects.filter(name="i-2").update(reported_at=rollout.started_at)
    hear(rollout, "i-1", 0, 10)
    hear(rollout, "i-2", 0, 4)
    assert later(rollout, 13) == [(10, 190)]


def test_an_instance_without_recent_telemetry_delays_nothing(rollout: Rollout, live: None) -> None:
    hear(rollout, "i-2", 0, 4)
    hear(rollout, "i-1", 20, 30)
    assert later(rollout, 33) == [(5, 95), (5, 95)]


def test_windows_within_the_hour_are_read_once_in_a_while(
    rollout: Rollout,
) -> None:
    for began_s in (600, 610):
        hear(rollout, "i-1", began_s, began_s + 10)
    freeze(rollout, closed_intervals(rollout, 10, rollout.started_at + timedelta(seconds=640)))
    hear(rollout, "i-1", 0, 10)
    results = [later(rollout, 650 + 10 * k) for k in range(EVALUATIONS_PER_FULL_READ)]
    assert results.count([(5, 95)]) == 1
    assert results.count([]) == EVALUATIONS_PER_FULL_READ - 1
