"""Traffic of instances is compared with their tables; alarms are raised once."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.models.models import AuditEntry
from apps.rollouts.divergence import watch_traffic
from apps.rollouts.models import Rollout, ServingChange, TrafficAlarm
from apps.rollouts.states import Phase
from tests.rollouts.factories import make_baking, make_model, send

pytestmark = pytest.mark.django_db

CANARY = {"kind": "canary", "version": "2", "weight_bp": 500}
EXPERIMENT = {
    "kind": "experiment",
    "coverage_bp": 10_000,
    "variants": [{"name": n, "version": n, "weight_bp": 5_000} for n in ("1", "2")],
}


def serve(
    generation: int, split: dict[str, Any] | None, stable: str = "1", age_s: float = 60.0
) -> None:
    ServingChange.objects.create(
        model_name="digits",
        at=database_now() - timedelta(seconds=age_s),
        generation=generation,
        stable=stable,
        split=split,
        reason="a test",
        actor="anna",
    )


def interval(canary: int, stable: int, **fields: Any) -> None:
    at = fields.pop("at", None) or database_now() - timedelta(seconds=2)
    for number, count in ((2, canary), (1, stable)):
        defaults: dict[str, Any] = {"requests": count, "units": count, "interval_started_at": at}
        if count:
            send("digits", number, at=at, variant="x", **(defaults | fields))


def watch() -> list[tuple[str, str]]:
    return [(alarm.kind, alarm.version_number) for alarm in watch_traffic(database_now())]


def test_traffic_as_configured_is_no_alarm() -> None:
    serve(1, CANARY)
    interval(50, 950)
    assert watch() == []


@pytest.mark.parametrize("split", [None, {**CANARY, "weight_bp": 0}])
def test_requests_to_a_version_at_0_are_a_leak(split: dict[str, Any] | None) -> None:
    serve(1, split)
    interval(1, 950)
    assert watch() == [("leak", "2")]
    assert "digits:2 got 1 requests on instance i-1 under generation 1" in _reason()


def _reason() -> str:
    return TrafficAlarm.objects.get().reason


def test_an_alarm_is_raised_once_and_stays_up_to_date() -> None:
    serve(1, None)
    interval(1, 0)
    assert len(watch()) == 1
    interval(3, 0)
    assert watch() == []
    assert "got 4 requests" in _reason()
    assert AuditEntry.objects.filter(action="traffic.leak").count() == 1


def test_traffic_is_compared_with_the_shares_of_its_table() -> None:
    serve(1, CANARY)
    serve(5, None)
    interval(50, 950, generation=4)
    assert watch() == []
    interval(1, 0, generation=5)
    assert watch() == [("leak", "2")]


def test_an_explicit_version_is_no_leak() -> None:
    serve(1, None)
    send("digits", 2, variant="explicit")
    assert watch() == []


def test_versions_of_an_experiment_are_no_leak_and_others_are() -> None:
    serve(1, EXPERIMENT)
    interval(500, 500)
    assert watch() == []
    send("digits", 3)
    assert watch() == [("leak", "3")]


def test_an_instance_that_ignores_a_split_is_named() -> None:
    serve(1, {**CANARY, "weight_bp": 5_000})
    interval(490, 510, instance="sound")
    interval(0, 1_000, instance="deaf")
    assert watch() == [("divergence", "1")]
    assert "traffic on instance deaf does not match the split" in _reason()


def test_chance_is_no_divergence() -> None:
    serve(1, {**CANARY, "weight_bp": 5_000})
    interval(460, 540)
    assert watch() == []


def test_a_leak_pauses_the_models_rollout() -> None:
    rollout = make_baking(make_model())
    ServingChange.objects.all().delete()
    serve(0, None)
    interval(5, 0)
    watch()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.PAUSED
    assert rollout.reason.startswith("alarm: digits:2 got 5 requests")
    assert not Rollout.objects.filter(phase=Phase.BAKING).exists()


def test_old_traffic_is_not_read_again() -> None:
    serve(1, None)
    long_ago: datetime = database_now() - timedelta(minutes=10)
    interval(5, 0, at=long_ago)
    assert watch() == []


def test_units_that_stay_are_not_counted_again_as_the_share_changes() -> None:
    """Units of the interval count under the old table: only moved units count again."""
    serve(1, CANARY, age_s=5.0)
    interval(60, 10, at=database_now() - timedelta(seconds=8))
    assert watch() == []
    interval(600, 100)
    assert watch() == [("divergence", "2")]
