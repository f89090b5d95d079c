"""Loops record pulses; pages, metrics and the API report stopped loops."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.models.tasks import reconcile_deployments_task
from apps.notifications.models import NotificationTarget, OutboxMessage
from apps.rollouts.tasks import tick_task
from controlplane import loop_health
from controlplane.celery import app
from controlplane.health import loops_document
from controlplane.ingest import Ingester
from controlplane.loop_health import KEY, LOOPS, Loop, read_pulses, record_pulse
from controlplane.models import ApiToken
from controlplane.settings import CELERY_BEAT_SCHEDULE
from controlplane.watchdog import Watchdog

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def marks(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis[bytes]]:
    """Delete all pulses; set the limit to 30 s and the start of this process to long ago."""
    settings.LOOP_LATE_S = 30
    monkeypatch.setattr(loop_health, "STARTED_AT", -1_000_000.0)
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        client.delete(*(KEY + loop.name for loop in LOOPS))
        yield client
        client.delete(*(KEY + loop.name for loop in LOOPS))


@pytest.fixture
def page(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("anna", password="x"))
    return client


def all_turn() -> None:
    for loop in LOOPS:
        record_pulse(loop.turned_by)


def let_pass(client: redis.Redis[bytes], loop: str, seconds: int) -> None:
    """Date a loop's pulse back by `seconds`."""
    now_s, _ = client.time()
    client.delete(KEY + loop)
    client.xadd(KEY + loop, {"v": b""}, id=f"{(now_s - seconds) * 1_000}-0")


def late() -> list[str]:
    return [pulse.loop.name for pulse in read_pulses().late]


def test_a_loop_with_a_recent_pulse_is_not_late() -> None:
    all_turn()
    assert read_pulses().is_well
    assert all(pulse.age_s is not None and pulse.age_s < 5 for pulse in read_pulses().loops)


@pytest.mark.parametrize("loop", LOOPS, ids=[loop.name for loop in LOOPS])
def test_each_loop_is_late_on_its_own(marks: redis.Redis[bytes], loop: Loop) -> None:
    all_turn()
    let_pass(marks, loop.name, round(loop.late_after_s) + 1)
    assert late() == [loop.name]


def test_the_limit_of_a_slow_loop_follows_its_period(marks: redis.Redis[bytes]) -> None:
    all_turn()
    let_pass(marks, "sync", 50)
    assert late() == []


def test_a_loop_without_a_pulse_is_late_after_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert late() == [loop.name for loop in LOOPS]
    monkeypatch.setattr(loop_health, "STARTED_AT", time.monotonic())
    assert late() == []


def test_a_restart_after_a_night_raises_no_alarm(
    marks: redis.Redis[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for loop in LOOPS:
        let_pass(marks, loop.name, 30_000)
    monkeypatch.setattr(loop_health, "STARTED_AT", time.monotonic())
    assert late() == []


def test_the_loops_are_tasks_of_the_schedule_and_the_ingester() -> None:
    turners = {loop.turned_by for loop in LOOPS}
    assert turners - {"ingest"} <= set(CELERY_BEAT_SCHEDULE)


def test_a_successful_task_records_a_pulse_and_a_failed_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app.set_current()
    tick_task.apply()
    assert "tick" not in late()
    monkeypatch.setattr("apps.models.tasks.reconcile_deployments", lambda: 1 / 0)
    reconcile_deployments_task.apply()
    assert "deployments" in late()


def test_the_ingester_records_pulses(marks: redis.Redis[bytes]) -> None:
    class Once:
        """An event that ends the loop after one turn."""

        turns = 0

        def is_set(self) -> bool:
            self.turns += 1
            return self.turns > 1

    Ingester(marks, "test", block_ms=1).run(Once())  # type: ignore[arg-type]
    assert "ingest" not in late()


def test_readiness_lists_late_loops_and_stays_ready(
    client: Client, marks: redis.Redis[bytes]
) -> None:
    all_turn()
    let_pass(marks, "tick", 61)
    response = client.get("/healthz/ready")
    assert (response.status_code, response.json()["late"]) == (200, ["tick"])
    assert response.json()["loops"]["tick"] == pytest.approx(61, abs=2)


def test_the_loops_have_their_own_health_endpoint(
    client: Client, marks: redis.Redis[bytes]
) -> None:
    all_turn()
    assert client.get("/healthz/loops").status_code == 200
    let_pass(marks, "ingest", 61)
    response = client.get("/healthz/loops")
    assert (response.status_code, response.json()["late"]) == (503, ["ingest"])


@pytest.mark.parametrize("path", ["/", "/models/", "/rollouts/", "/experiments/", "/tokens/"])
def test_every_page_reports_a_stopped_loop(
    page: Client, marks: redis.Redis[bytes], path: str
) -> None:
    all_turn()
    assert "has stopped in part" not in page.get(path).content.decode()
    let_pass(marks, "tick", 61)
    shown = page.get(path).content.decode()
    assert "has stopped in part" in shown
    assert "no rollout moves" in shown


def test_an_open_page_refreshes_the_banner(page: Client, marks: redis.Redis[bytes]) -> None:
    all_turn()
    assert 'hx-get="/loops/"' in page.get("/").content.decode()
    let_pass(marks, "delivery", 61)
    assert "notifications are not sent" in page.get("/loops/").content.decode()


def test_metrics_export_age_and_lateness(client: Client, marks: redis.Redis[bytes]) -> None:
    all_turn()
    let_pass(marks, "tick", 61)
    owner = User.objects.create_user("prometheus")
    _, secret = ApiToken.issue(user_id=owner.pk, name="scrape")
    text = client.get("/metrics", headers={"Authorization": f"Bearer {secret}"}).content.decode()
    assert 'interlock_control_loop_late{loop="tick"} 1.0' in text
    assert 'interlock_control_loop_late{loop="ingest"} 0.0' in text
    assert 'interlock_control_loop_age_seconds{loop="tick"} 61' in text


def test_without_redis_the_state_is_reported_as_unknown(
    page: Client, settings: Any, client: Client
) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    pulses = read_pulses()
    assert not pulses.is_well
    assert "Redis is unreachable" in loops_document(pulses)["trouble"]
    assert "Redis is unreachable" in page.get("/").content.decode()
    record_pulse("rollouts.tick")


def test_the_watchdog_notifies_targets_of_all_models_once(marks: redis.Redis[bytes]) -> None:
    NotificationTarget.objects.create(
        name="all", kind="webhook", address="http://127.0.0.1:1/", created_at=database_now()
    )
    all_turn()
    watchdog = Watchdog()
    assert watchdog.check() == []
    let_pass(marks, "tick", 61)
    assert (watchdog.check(), watchdog.check()) == (["tick"], [])
    (message,) = OutboxMessage.objects.all()
    assert message.event == "loop.stopped"
    assert "no rollout moves" in message.payload["reason"]
    record_pulse("rollouts.tick")
    assert watchdog.check() == []
    let_pass(marks, "tick", 61)
    assert watchdog.check() == ["tick"]


def test_the_watchdog_delivers_while_the_delivery_loop_is_stopped(
    marks: redis.Redis[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    deliveries: list[int] = []
    monkeypatch.setattr("controlplane.watchdog.deliver_due", lambda: deliveries.append(1))
    all_turn()
    let_pass(marks, "tick", 61)
    Watchdog().check()
    assert deliveries == []
    let_pass(marks, "delivery", 61)
    Watchdog().check()
    assert deliveries == [1]
