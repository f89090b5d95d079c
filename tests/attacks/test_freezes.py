"""Weekly freezes across daylight saving time, and freezes that begin during a rollout.

A weekly freeze created in winter was an hour off in summer; one that began during a rollout was
shown nowhere, and only a new start could override it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.models.models import RegisteredModel, Role
from apps.rollouts.freezes import next_start, open_until
from apps.rollouts.models import FreezeWindow, Rollout
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.releases import start_release
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from tests.confirming import post_yes, question_of
from tests.rollouts.callers import caller, rendered, send_json
from tests.rollouts.factories import ANNA, make_baking, make_instance, make_model, make_person

BERLIN = ZoneInfo("Europe/Berlin")
FREEZES = "/api/v1/freezes/"


def weekends(zone: str, year: int = 2026) -> FreezeWindow:
    """From Friday 15:00 to Monday 8:00, created in November."""
    tz = ZoneInfo(zone)
    return FreezeWindow(
        reason="weekends",
        starts_at=datetime(year, 11, 27, 15, tzinfo=tz).astimezone(UTC),
        ends_at=datetime(year, 11, 30, 8, tzinfo=tz).astimezone(UTC),
        is_weekly=True,
        time_zone=zone,
    )


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "UTC"])
@pytest.mark.parametrize("weeks", range(60))
def test_a_weekly_window_keeps_the_hour_of_its_zone_all_year(zone: str, weeks: int) -> None:
    window, tz = weekends(zone), ZoneInfo(zone)
    friday = datetime(2026, 11, 27, 15, tzinfo=tz) + timedelta(weeks=weeks)
    monday = datetime(2026, 11, 30, 8, tzinfo=tz) + timedelta(weeks=weeks)
    second = timedelta(seconds=1)

    assert open_until(window, friday.astimezone(UTC) - second) is None
    assert next_start(window, friday.astimezone(UTC) - second) == friday
    assert open_until(window, friday.astimezone(UTC)) == monday
    assert open_until(window, monday.astimezone(UTC) - second) == monday
    assert open_until(window, monday.astimezone(UTC)) is None


@pytest.mark.django_db
def test_a_weekly_window_with_an_offset_needs_its_time_zone() -> None:
    admin = caller("admin")
    body = {
        "reason": "weekends",
        "starts_at": "2026-11-27T15:00:00+01:00",
        "ends_at": "2026-11-30T08:00:00+01:00",
        "is_weekly": True,
    }
    refused = send_json(admin, FREEZES, body)
    assert refused.status_code == 400
    assert "needs a time_zone" in rendered(refused)
    assert send_json(admin, FREEZES, body | {"time_zone": "Mars/Olympus"}).status_code == 400
    created = send_json(admin, FREEZES, body | {"time_zone": "Europe/Berlin"})
    assert (created.status_code, created.json()["time_zone"]) == (201, "Europe/Berlin")
    # UTC has no daylight saving time.
    body |= {"starts_at": "2026-11-27T14:00:00Z", "ends_at": "2026-11-30T07:00:00Z"}
    assert send_json(admin, FREEZES, body).status_code == 201


@pytest.mark.django_db
def test_the_page_reads_times_in_the_chosen_zone(client: Client) -> None:
    make_person("ada", Role.ADMIN)
    client.force_login(_user("ada"))
    form = {
        "starts_at": "2027-07-02T15:00",
        "ends_at": "2027-07-05T08:00",
        "time_zone": "Europe/Berlin",
        "reason": "weekends",
        "is_weekly": "on",
    }
    assert client.post("/rollouts/rules/freezes/", form).status_code == 302
    window = FreezeWindow.objects.get()
    assert window.starts_at == datetime(2027, 7, 2, 13, tzinfo=UTC)
    assert window.time_zone == "Europe/Berlin"
    assert "Europe/Berlin" in rendered(client.get("/rollouts/rules/"))


def _user(name: str) -> User:
    return User.objects.get(username=name)


def freeze(model: RegisteredModel | None) -> FreezeWindow:
    now = database_now()
    return FreezeWindow.objects.create(
        model=model,
        reason="the fair",
        starts_at=now - timedelta(minutes=1),
        ends_at=now + timedelta(hours=2),
        time_zone="Europe/Berlin",
        created_by="ada",
        created_at=now,
    )


def bare_rollout() -> Rollout:
    steps = tuple(StepDocument(weight_bp=w, bake_s=0, checks=()) for w in (500, 2_500, 10_000))
    save_plan(document=PlanDocument(name="bare", steps=steps), is_default=True, actor=ANNA)
    make_instance()
    return make_baking(make_model())


def turn(rollout: Rollout) -> Rollout:
    for _ in range(2):
        Rollout.objects.filter(next_check_at__isnull=False).update(next_check_at=database_now())
        tick_rollouts()
    rollout.refresh_from_db()
    return rollout


@pytest.mark.django_db
def test_a_freeze_that_begins_during_a_rollout_is_shown_with_its_end_and_overridden(
    client: Client,
) -> None:
    rollout = bare_rollout()
    window = freeze(rollout.model)
    make_person("olga", Role.OPERATOR)
    client.force_login(_user("olga"))
    path = f"/rollouts/{rollout.pk}/"
    local = window.ends_at.astimezone(BERLIN)
    assert turn(rollout).step_index == 0

    page = rendered(client.get(path))
    assert "A freeze holds the rollout" in page
    assert f"({local:%H:%M} in Europe/Berlin)" in page
    form = {"revision": rollout.revision}
    assert "Reason for the override" in question_of(client, f"{path}override-freeze/", form)
    post_yes(client, f"{path}override-freeze/", form)
    assert turn(rollout).step_index == 0, "without a reason it holds"
    post_yes(client, f"{path}override-freeze/", form | {"reason": "a fix that cannot wait"})

    assert turn(rollout).step_index > 0
    page = rendered(client.get(path))
    assert "A freeze holds the rollout" not in page
    assert "a fix that cannot wait" in page
    assert "was overridden by olga" in page


@pytest.mark.django_db
@pytest.mark.parametrize("verb", ["override-freeze", "skip", "promote"])
def test_a_freeze_of_all_models_is_overridden_by_an_admin_with_a_reason(verb: str) -> None:
    rollout = bare_rollout()
    freeze(None)
    olga, ada = caller("operator", "olga"), caller("admin", "ada")
    path = f"/api/v1/rollouts/{rollout.pk}/{verb}/"
    body: dict[str, Any] = {} if verb == "override-freeze" else {"overrides": ["freeze"]}

    assert send_json(olga, path, body | {"reason": "now"}).status_code == 403
    assert send_json(ada, path, body).status_code == 400
    assert Rollout.objects.get().revision == rollout.revision
    assert send_json(ada, path, body | {"reason": "a fix that cannot wait"}).status_code == 200

    explanation = ada.get(f"/api/v1/rollouts/{rollout.pk}/explain/").json()
    assert "a fix that cannot wait" in " ".join(explanation["story"])
    assert "was overridden by ada" in " ".join(explanation["story"])


@pytest.mark.django_db
def test_an_operators_override_reaches_no_later_freeze_of_all_models() -> None:
    rollout = bare_rollout()
    freeze(rollout.model)
    olga = caller("operator", "olga")
    path = f"/api/v1/rollouts/{rollout.pk}/override-freeze/"
    assert send_json(olga, path, {"reason": "now"}).status_code == 200
    freeze(None)
    assert turn(rollout).step_index == 0
    assert "held by a freeze" in rollout.reason


@pytest.mark.django_db
def test_a_release_shows_which_of_its_models_is_frozen_until_when(client: Client) -> None:
    steps = (StepDocument(weight_bp=500), StepDocument(weight_bp=10_000))
    save_plan(document=PlanDocument(name="bare", steps=steps), is_default=True, actor=ANNA)
    models = [make_model("a"), make_model("b")]
    targets = {model: model.versions.get(number=2) for model in models}
    now = database_now()
    release = start_release(name="spring", targets=targets, actor=ANNA, now=now)
    Rollout.objects.update(phase=Phase.BAKING, step_index=0)
    window = freeze(models[1])
    make_person("olga", Role.OPERATOR)
    client.force_login(_user("olga"))

    page = rendered(client.get(f"/rollouts/releases/{release.pk}/"))

    assert "A freeze holds b" in page
    assert "A freeze holds a" not in page
    assert f"{window.ends_at:%Y-%m-%d %H:%M} UTC" in page
    assert 'id="override-freeze"' in page
