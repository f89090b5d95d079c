"""What an instance assigned is held against how its requests ended."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.models.models import RegisteredModel
from apps.rollouts.models import IngestedBatch, Instance, Rollout, TrafficAlarm
from apps.rollouts.states import Phase
from apps.rollouts.watch import watch_ends
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
    return [alarm.told for alarm in TrafficAlarm.objects.filter(kind="ends")]


def test_what_ended_in_any_way_is_no_alarm() -> None:
    batches(1, 2, 3)
    window(200, 5, answered=2)
    window(150, 0, expired=1, shed=1)
    window(1, 4, refused=1)
    assert watch() == []


def test_requests_that_never_end_raise_an_alarm() -> None:
    batches(1, 2)
    window(200, 7, answered=4)
    window(1, 3, answered=2)
    (told,) = watch()
    assert told == (
        "7 requests were assigned to digits:2 on instance i-1 under generation 1 more than "
        "121 s ago, and 6 have ended since"
    )


def test_requests_that_end_twice_raise_an_alarm() -> None:
    batches(1, 2)
    window(240, 5)
    window(30, 0, answered=6)
    (told,) = watch()
    assert told.startswith("6 requests of digits:2 on instance i-1 ended under generation 1")
    assert "and 5 were assigned" in told


def test_what_may_still_be_under_way_or_began_before_the_span_is_no_alarm() -> None:
    batches(1, 2, 3)
    # The last that could have begun before what is looked at, and the first that could still last.
    window(239, 0, answered=9)
    window(115, 5)
    window(1, 0, answered=1)
    assert watch() == []


def test_a_model_that_may_take_long_is_waited_for(model: RegisteredModel) -> None:
    batches(1, 2)
    window(200, 7)
    window(1, 1)
    RegisteredModel.objects.update(timeout_ms=600_000)
    assert watch() == []


def test_an_instance_is_held_to_what_it_last_said() -> None:
    batches(1)
    # Nothing of it has come for longer: its windows wait in its spool, or nobody asks.
    window(200, 7)
    assert watch() == []


def test_each_instance_version_and_generation_is_compared_for_itself() -> None:
    for instance in ("i-1", "i-2"):
        batches(1, 2, instance=instance)
        window(1, 0, instance, answered=1)
    window(200, 3, "i-1", answered=5)
    window(200, 5, "i-2", answered=1)
    assert [told.partition(" under")[0] for told in watch()] == [
        "5 requests were assigned to digits:2 on instance i-2"
    ]


@pytest.mark.parametrize(("sequences", "dropped"), [((1, 3), {}), ((1, 2), {STREAM_TELEMETRY: 1})])
def test_an_instance_whose_telemetry_is_not_whole_is_not_compared(
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


def test_exposures_that_were_dropped_are_no_reason_not_to_compare() -> None:
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
