"""Assigned and ended requests of an instance are compared."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.models.models import RegisteredModel
from apps.rollouts.divergence import watch_ends
from apps.rollouts.models import IngestedBatch, Instance, Rollout, TrafficAlarm
from apps.rollouts.states import Phase
from contract.messages import STREAM_TELEMETRY
from tests.rollouts.factories import make_baking, make_model, send

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def model() -> RegisteredModel:
    return make_model()


def window(ago_s: float, assigned: int, instance: str = "i-1", **ends: int) -> None:
    at = database_now() - timedelta(seconds=ago_s)
    send("digits", 2, at=at, instance=instance, assigned_requests=assigned, ends=ends)


def batches(*sequences: int, instance: str = "i-1", boot: str = "b1") -> None:
    for sequence in sequences:
        IngestedBatch.objects.create(
            stream=STREAM_TELEMETRY, instance=instance, boot=boot, sequence=sequence
        )


def report(dropped: dict[str, int], instance: str = "i-1") -> None:
    Instance.objects.create(name=instance, boot="b1", dropped=dropped, reported_at=database_now())


def watch() -> list[str]:
    watch_ends(database_now())
    return [alarm.reason for alarm in TrafficAlarm.objects.filter(kind="ends")]


def test_requests_that_ended_in_any_way_are_no_alarm() -> None:
    batches(1, 2, 3)
    window(200, 5, answered=2)
    window(150, 0, expired=1, shed=1)
    window(1, 4, refused=1)
    assert watch() == []


def test_requests_that_never_end_raise_an_alarm() -> None:
    batches(1, 2)
    window(200, 7, answered=4)
    window(1, 3, answered=2)
    (reason,) = watch()
    assert reason == (
        "7 requests were assigned to digits:2 on instance i-1 under generation 1 more than "
        "61 s ago, and 6 have ended since"
    )


def test_requests_that_end_twice_raise_an_alarm() -> None:
    batches(1, 2)
    window(240, 5)
    window(30, 0, answered=6)
    (reason,) = watch()
    assert reason.startswith("6 requests of digits:2 on instance i-1 ended under generation 1")
    assert "and 5 were assigned" in reason


def test_requests_in_progress_or_from_before_the_span_are_no_alarm() -> None:
    batches(1, 2, 3)
    # The last that could have begun before what is looked at, and the first that could still last.
    window(605, 0, answered=9)
    window(25, 5)
    window(1, 0, answered=1)
    assert watch() == []


def test_a_long_timeout_extends_the_span(model: RegisteredModel) -> None:
    batches(1, 2)
    window(200, 7)
    window(1, 1)
    RegisteredModel.objects.update(timeout_ms=600_000)
    assert watch() == []


def test_an_instances_span_ends_with_its_last_telemetry() -> None:
    batches(1)
    # Nothing of it has come for longer: its windows wait in its spool, or nobody asks.
    window(200, 7)
    assert watch() == []


def test_instances_versions_and_generations_are_compared_separately() -> None:
    for instance in ("i-1", "i-2"):
        batches(1, 2, instance=instance)
        window(1, 0, instance, answered=1)
    window(620, 3, "i-1", answered=5)
    window(200, 5, "i-2", answered=1)
    assert [reasons.partition(" under")[0] for reasons in watch()] == [
        "5 requests were assigned to digits:2 on instance i-2"
    ]


@pytest.mark.parametrize(("sequences", "dropped"), [((1, 3), {}), ((1, 2), {STREAM_TELEMETRY: 1})])
def test_an_instance_with_incomplete_telemetry_is_not_compared(
    sequences: tuple[int, ...], dropped: dict[str, int], client: Any, admin_user: Any
) -> None:
    batches(*sequences)
    report(dropped)
    window(200, 7)
    window(1, 1)
    assert watch() == []
    client.force_login(admin_user)
    page = client.get("/fleet/").content.decode()
    assert ("dropped telemetry since its boot" in page) is bool(dropped)


def test_an_instance_that_restarted_is_not_compared() -> None:
    batches(1, 2)
    batches(1, boot="b2")
    window(200, 7)
    window(1, 1)
    assert watch() == []


def test_dropped_exposures_do_not_prevent_the_comparison() -> None:
    batches(1, 2)
    report({"interlock:exposures": 3})
    window(200, 7)
    window(1, 1)
    assert len(watch()) == 1


def test_an_alarm_pauses_the_models_rollout_and_is_raised_once(model: RegisteredModel) -> None:
    rollout = make_baking(model)
    batches(1, 2)
    window(200, 7)
    window(1, 1)
    now: datetime = database_now()
    assert len(watch_ends(now)) == 1
    assert watch_ends(now) == []
    assert Rollout.objects.get(pk=rollout.pk).phase == Phase.PAUSED


def batch_at(ago_s: float, sequence: int, boot: str = "b1", instance: str = "i-1") -> None:
    batches(sequence, boot=boot, instance=instance)
    at = database_now() - timedelta(seconds=ago_s)
    IngestedBatch.objects.filter(boot=boot, sequence=sequence, instance=instance).update(at=at)


@pytest.mark.parametrize("ahead_s", [0, 20, 3_600])
def test_a_killed_process_is_no_alarm_whatever_its_clock_says(ahead_s: int) -> None:
    """Its last windows are older than the span, but a fast clock dates them into it."""
    batch_at(670, 9)
    window(670 - ahead_s, 50, answered=2)
    for sequence, ago_s in enumerate((668, 120, 1), 1):
        batch_at(ago_s, sequence, boot="b2")
        window(ago_s - ahead_s, 3, answered=3)
    assert watch() == []


@pytest.mark.parametrize("off_s", [-280, -60, 0, 60, 3_600])
def test_a_loss_is_detected_whatever_the_clock(off_s: int) -> None:
    for sequence, ago_s in enumerate((200, 100, 1), 1):
        batch_at(ago_s, sequence)
    window(200 - off_s, 7, answered=4)
    window(1 - off_s, 3, answered=2)
    (reason,) = watch()
    assert reason.startswith("7 requests were assigned to digits:2 on instance i-1")


def test_an_instance_without_traffic_is_compared_until_its_last_telemetry() -> None:
    batch_at(400, 1)
    batch_at(200, 2)
    window(400, 7, answered=4)
    window(200, 3, answered=2)
    assert len(watch()) == 1


def test_a_batch_missing_before_the_span_matters_to_a_fast_clock() -> None:
    for sequence, ago_s, ended in ((1, 670, 0), (3, 120, 40), (4, 1, 40)):
        batch_at(ago_s, sequence)
        window(ago_s - 20, 100 - ended, answered=ended)
    assert watch() == []


def test_repeated_or_reordered_batches_are_no_alarm() -> None:
    for sequence, ago_s in ((2, 200), (1, 199), (4, 60), (3, 59), (5, 1)):
        batch_at(ago_s, sequence)
    window(200, 4)
    window(201, 1, answered=3)
    window(60, 0, answered=2)
    window(1, 1)
    assert watch() == []


def test_a_data_plane_without_ends_is_no_alarm() -> None:
    batches(1, 2)
    for ago_s in (200, 1):
        send("digits", 2, at=database_now() - timedelta(seconds=ago_s), requests=60)
    assert watch() == []


def test_two_workers_are_two_instances() -> None:
    for instance in ("i-1/0", "i-1/1"):
        batches(1, 2, instance=instance)
        window(200, 7, instance, answered=7 if instance == "i-1/0" else 5)
        window(1, 1, instance, answered=1)
    (reason,) = watch()
    assert "on instance i-1/1" in reason


def test_a_worker_that_is_killed_repeatedly_hides_only_its_own_losses() -> None:
    for boot in range(5):
        batch_at(40 * boot + 1, 1, boot=f"b{boot}", instance="i-2")
    window(200, 7, "i-2")
    batches(1, 2)
    window(200, 7, answered=5)
    window(1, 1)
    (reason,) = watch()
    assert "on instance i-1" in reason


@pytest.mark.parametrize(("lost", "alarms"), [(0, 0), (15, 1), (-15, 1)])
def test_in_steady_traffic_a_lost_or_doubled_share_is_detected(lost: int, alarms: int) -> None:
    batches(1, 2)
    for ago_s in range(1, 700, 10):
        window(ago_s, 100, answered=100 - lost)
    assert len(watch()) == alarms


def test_one_lost_request_of_a_past_generation_is_detected() -> None:
    batches(1, 2)
    for ago_s in range(101, 700, 10):
        window(ago_s, 100, answered=100 - (ago_s == 301))
    send("digits", 2, generation=2, assigned_requests=5, ends={"answered": 5})
    (reason,) = watch()
    assert "under generation 1" in reason
