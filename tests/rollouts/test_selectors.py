"""What the pages read: traffic, the fleet, how a rollout stands."""

from __future__ import annotations

from datetime import timedelta

import pytest

from apps.lib.clock import database_now
from apps.rollouts.models import PublishedTable
from apps.rollouts.selectors import rollouts, serving
from apps.rollouts.selectors.fleet import STALE_AFTER, read_fleet
from apps.rollouts.selectors.shadows import recent_shadows, shadow_agreement, shadows_stamp
from apps.rollouts.selectors.telemetry import (
    POINTS_MAX,
    Traffic,
    add_up,
    last_minute,
    minute_stamp,
    series,
    width_of,
)
from apps.rollouts.states import Phase
from tests.rollouts.factories import make_baking, make_instance, make_model, send, send_shadow

db = pytest.mark.django_db


def publish(generation: int, ago: timedelta = timedelta(0)) -> PublishedTable:
    return PublishedTable.objects.create(
        generation=generation,
        digest="d",
        document=b"{}",
        reason="r",
        actor="a",
        published_at=database_now() - ago,
    )


def test_traffic_without_requests_has_no_rates() -> None:
    nothing = Traffic(span_s=60)

    assert (nothing.per_second, nothing.error_rate, nothing.p95_us) == (0, None, None)


def test_traffic_adds_up_over_the_same_seconds() -> None:
    both = add_up([Traffic(60, 60, 3, {80: 60}), Traffic(60, 60, 0, {80: 60})], 60)

    assert (both.per_second, both.error_rate, both.p50_us) == (2, 0.025, 1_024)


@pytest.mark.parametrize("minutes", [1, 15, 60, 360, 1_440])
def test_a_chart_has_a_bounded_number_of_points(minutes: int) -> None:
    span = timedelta(minutes=minutes)

    assert span.total_seconds() / width_of(span) <= POINTS_MAX


@db
def test_the_last_minute_adds_instances_and_leaves_older_windows_out() -> None:
    now = database_now()
    send("digits", 1, at=now, errors=6, latency={"80": 30})
    send("digits", 1, at=now, instance="i-2", latency={"80": 30, "88": 2})
    send("digits", 1, at=now - timedelta(minutes=2))
    send("fraud", 1, at=now)

    result = last_minute(now, "digits")

    assert list(result) == ["digits"]
    assert result["digits"]["1"].requests == 120
    assert result["digits"]["1"].error_rate == 0.05
    assert result["digits"]["1"].latency == {80: 60, 88: 2}


@db
def test_the_stamp_changes_with_a_new_window_and_when_one_ages_out() -> None:
    now = database_now()
    empty = minute_stamp(now)
    send("digits", 1, at=now)

    assert minute_stamp(now) != empty
    assert minute_stamp(now + timedelta(minutes=2)) == empty


@db
def test_a_series_has_an_arm_per_version_and_no_unfinished_bin() -> None:
    now = database_now().replace(microsecond=0)
    until = now.replace(second=30)
    for second, version in ((20, 1), (20, 2), (21, 1), (30, 1)):
        send("digits", version, at=until.replace(second=second), units=7)

    points = series("digits", since=until - timedelta(minutes=15), until=until, by="version_number")

    assert [(p.arm, p.requests, p.units, p.span_s) for p in points] == [
        ("1", 120, 14, 10),
        ("2", 60, 7, 10),
    ]
    assert points[0].latency == {100: 120}


@db
def test_a_series_by_variant_leaves_out_what_is_not_asked_for() -> None:
    until = database_now()
    for variant in ("stable", "canary", "explicit"):
        send("digits", 1, at=until - timedelta(seconds=30), variant=variant)

    points = series(
        "digits",
        since=until - timedelta(minutes=5),
        until=until,
        by="variant",
        variants=("stable", "canary"),
    )

    assert {point.arm for point in points} == {"stable", "canary"}


@db
def test_the_fleet_tells_live_behind_refused_stopping_and_gone() -> None:
    publish(7)
    now = database_now()
    make_instance("a", applied_generation=7, dropped={"telemetry": 3})
    make_instance("b", applied_generation=6)
    make_instance("c", applied_generation=6, refused_generation=7, refusal="not ready")
    make_instance("d", is_stopping=True)
    make_instance("e", reported_at=now - timedelta(minutes=5))
    make_instance("f", reported_at=now - timedelta(days=2))

    fleet = read_fleet(now)

    states = {member.instance.name: member.state for member in fleet.members}
    assert states == {"a": "live", "b": "behind", "c": "refused", "d": "stopping", "e": "gone"}
    assert (len(fleet.live), len(fleet.behind), fleet.dropped) == (3, 2, 3)


@db
def test_a_rollouts_steps_are_done_now_and_next() -> None:
    rollout = make_baking(make_model())
    rollout.step_index = 1

    assert [step.state for step in rollouts.steps_of(rollout)] == ["done", "now", "next"]

    rollout.phase = Phase.ROLLED_BACK
    assert [step.state for step in rollouts.steps_of(rollout)] == ["done", "ended", "next"]

    rollout.phase = Phase.SUCCEEDED
    assert {step.state for step in rollouts.steps_of(rollout)} == {"done"}


@db
def test_the_clock_names_the_instances_that_hold_it() -> None:
    rollout = make_baking(make_model())
    make_instance("slow", applied_generation=0, refused_generation=99, refusal="disk full")

    clock = rollouts.clock_of(rollout, database_now())

    assert clock.waiting == [("slow", "refused generation 99: disk full")]


@db
def test_a_clock_that_runs_asks_nobody() -> None:
    rollout = make_baking(make_model())
    now = database_now()
    rollout.step_started_at, rollout.step_due_at = now, now - timedelta(seconds=1)

    clock = rollouts.clock_of(rollout, now)

    assert clock.waiting == []
    assert clock.is_extended


@db
def test_live_rollouts_stand_first() -> None:
    old, new = make_baking(make_model("a")), make_baking(make_model("b"))
    type(new).objects.filter(pk=new.pk).update(phase=Phase.FAILED)

    assert [rollout.pk for rollout in rollouts.find_rollouts()] == [old.pk, new.pk]


@db
def test_decisions_leave_out_what_only_prepares() -> None:
    make_baking(make_model())

    assert [event.to_state for event in serving.recent_decisions()] == [Phase.BAKING]


@db
def test_hits_of_the_cache_are_answers_and_no_version_is_judged_by_them() -> None:
    now = database_now()
    send("digits", 1, at=now, requests=60, errors=6, cache_hits=180)

    result = last_minute(now)["digits"]["1"]

    assert (result.hit_rate, result.per_second, result.error_rate) == (0.75, 4, 0.1)
    assert add_up([result, result], 60).cache_hits == 360
    assert Traffic(60).hit_rate is None


@db
def test_an_instance_that_stays_behind_is_stale_since_the_table_that_it_lacks() -> None:
    first = publish(8, STALE_AFTER * 3)
    publish(9)
    make_instance("fresh", applied_generation=8)
    make_instance("stuck", applied_generation=7)
    make_instance("forgotten", applied_generation=2)

    fleet = read_fleet(database_now())

    result = {m.instance.name: (m.state, m.behind_since) for m in fleet.members}
    assert result["fresh"][0] == "behind"
    assert result["stuck"] == ("stale", first.published_at)
    assert result["forgotten"] == ("stale", None)
    assert len(fleet.behind) == len(fleet.live) == 3


@db
def test_the_fleet_names_what_is_pinned_and_its_stamp_changes_with_it() -> None:
    publish(9)
    instance = make_instance("edge-1", applied_generation=9, pinned=["digits", "fraud"])
    before = read_fleet(database_now())
    instance.pinned = ["*"]
    instance.save()
    after = read_fleet(database_now())

    assert [m.pins for m in before.pinned] == ["digits, fraud"]
    assert [m.pins for m in after.pinned] == ["all models"]
    assert before.stamp != after.stamp


@db
def test_a_shadows_agreement_adds_its_windows_of_the_time_and_the_generation() -> None:
    now = database_now()
    send_shadow(at=now)
    send_shadow(at=now, instance="i-2", largest_difference=0.5)
    send_shadow(at=now, generation=0)
    send_shadow(at=now - timedelta(minutes=9))
    send_shadow(at=now, shadow="s2")

    result = shadow_agreement("s1", since=now - timedelta(minutes=5), until=now, generation_min=1)

    assert (result.compared, result.rows, result.largest_difference) == (16, 20, 0.5)
    assert (result.flip_rate, result.beyond_rate) == (0.1, 0.2)
    assert (result.error_rate, result.rank_correlation) == (0.2, 0.9)


@db
def test_a_shadow_without_windows_has_no_rates() -> None:
    now = database_now()
    nothing = shadow_agreement("s1", since=now - timedelta(days=1), until=now)

    assert (nothing.rows, nothing.flip_rate, nothing.beyond_rate) == (0, None, None)
    assert (nothing.error_rate, nothing.rank_correlation) == (None, None)


@db
def test_a_models_recent_shadows_are_listed_and_stamped() -> None:
    now = database_now()
    empty = shadows_stamp("digits", now)
    send_shadow(at=now)
    send_shadow(at=now, model="fraud")
    send_shadow(at=now - timedelta(hours=2), shadow="old")

    (result,) = recent_shadows("digits", now)

    assert (result.shadow, result.version, result.stable) == ("s1", "2", "1")
    assert result.agreement.rows == 10
    assert shadows_stamp("digits", now) != empty
