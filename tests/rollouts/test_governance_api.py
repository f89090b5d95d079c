"""Freeze windows, the limit and the quarantine over the API: who may, and what is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client

from apps.lib.clock import database_now
from apps.models.models import AuditEntry
from apps.rollouts.models import FreezeWindow, Quarantine, RolloutPolicy
from tests.rollouts.callers import caller, send_json
from tests.rollouts.factories import make_model, make_plan

pytestmark = pytest.mark.django_db

FREEZES = "/api/v1/freezes/"
POLICY = "/api/v1/rollout-policy/"


def window(**fields: Any) -> dict[str, Any]:
    now = database_now()
    span = {"starts_at": now.isoformat(), "ends_at": (now + timedelta(hours=2)).isoformat()}
    return {"model": "digits", "reason": "holidays", **span, **fields}


def test_a_frozen_model_starts_nothing_until_the_window_is_ended() -> None:
    make_model()
    make_plan()
    bob = caller()
    start = {"model": "digits", "version": "2"}

    created = send_json(bob, FREEZES, window())
    refused = send_json(bob, "/api/v1/rollouts/", start)
    ended = bob.delete(f"{FREEZES}{created.json()['id']}/")
    started = send_json(bob, "/api/v1/rollouts/", start)

    assert created.json()["open_until"] is not None
    assert (refused.status_code, "holidays" in refused.content.decode()) == (409, True)
    assert (ended.status_code, started.status_code) == (204, 201)


def test_an_override_starts_despite_a_freeze() -> None:
    make_model()
    make_plan()
    bob = caller()
    send_json(bob, FREEZES, window())
    body = {"model": "digits", "version": "2", "overrides": ["freeze"]}

    assert send_json(bob, "/api/v1/rollouts/", body).json()["overrides"] == ["freeze"]


def test_all_models_are_frozen_by_an_admin_only() -> None:
    make_model()

    assert send_json(caller(), FREEZES, window(model=None)).status_code == 403
    created = send_json(caller("admin", "eve"), FREEZES, window(model=None))

    assert (created.status_code, created.json()["model"]) == (201, None)
    assert caller("operator", "carl").delete(f"{FREEZES}{created.json()['id']}/").status_code == 403


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"ends_at": "2020-01-01T00:00:00Z"}, 400, "end after it starts"),
        ({"starts_at": "2026-11-25T14:05:00"}, 400, "time zone"),
        ({"starts_at": "tomorrow"}, 400, "ISO 8601"),
        ({"starts_at": "0001-01-01T00:00:00+23:59"}, 400, "out of range"),
        ({"ends_at": 7}, 400, "ends_at"),
        ({"ends_at": "2031-01-01T00:00:00Z"}, 400, "365 days"),
        ({"reason": ""}, 400, "reason"),
        ({"model": "nobody"}, 404, "nobody"),
        ({"weekly": True}, 400, "weekly"),
        ({"is_weekly": True, "ends_at": "2027-01-01T00:00:00Z"}, 400, "shorter than a week"),
    ],
)
def test_a_bad_window_is_named(fields: dict[str, Any], status: int, message: str) -> None:
    make_model()

    answer = send_json(caller(), FREEZES, window(**fields))

    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]
    assert not FreezeWindow.objects.exists()


def test_the_list_tells_what_concerns_a_model() -> None:
    make_model()
    make_model("other")
    eve = caller("admin")
    for name in ("digits", "other", None):
        send_json(eve, FREEZES, window(model=name))

    rows = eve.get(FREEZES, {"model": "digits"}).json()["results"]

    assert [row["model"] for row in rows] == ["digits", None]


def test_the_limit_is_set_by_an_admin_and_audited() -> None:
    eve = caller("admin")

    set_to = send_json(eve, POLICY, {"concurrent_max": 2}, method="put")

    assert set_to.json() == eve.get(POLICY).json() == {"concurrent_max": 2}
    assert RolloutPolicy.objects.get().concurrent_max == 2
    assert AuditEntry.objects.get(action="rollout_policy.changed").actor == "eve"
    assert send_json(eve, POLICY, {"concurrent_max": None}, method="put").status_code == 200


@pytest.mark.parametrize("body", [{"concurrent_max": 0}, {"concurrent_max": "many"}, {}])
def test_a_bad_limit_is_refused(body: dict[str, Any]) -> None:
    assert send_json(caller("admin"), POLICY, body, method="put").status_code == 400
    assert not RolloutPolicy.objects.exclude(concurrent_max=None).exists()


def quarantined() -> Client:
    model = make_model()
    version = model.versions.get(number=2)
    Quarantine.objects.create(version=version, reason="3 % errors", at=database_now())
    return caller()


def test_a_quarantine_is_told_and_lifted_with_a_reason() -> None:
    bob = quarantined()
    path = "/api/v1/quarantine/digits/2/"

    rows = bob.get("/api/v1/quarantine/").json()["results"]
    without = [bob.delete(path), send_json(bob, path, ["x"], method="delete")]
    lifted = bob.delete(f"{path}?reason=fixed")
    again = bob.delete(f"{path}?reason=fixed")

    assert [(row["model"], row["version"], row["reason"]) for row in rows] == [
        ("digits", 2, "3 % errors")
    ]
    assert [answer.status_code for answer in without] == [400, 400]
    assert (lifted.status_code, again.status_code) == (204, 409)
    assert AuditEntry.objects.get(action="quarantine.lifted").after == {"reason": "fixed"}


def test_a_viewer_lifts_no_quarantine() -> None:
    quarantined()

    answer = caller(None, "carl").delete("/api/v1/quarantine/digits/2/?reason=x")

    assert answer.status_code == 403
    assert Quarantine.objects.exists()


@pytest.mark.parametrize("path", ["digits/9", "nobody/2"])
def test_what_is_not_there_is_not_lifted(path: str) -> None:
    assert quarantined().delete(f"/api/v1/quarantine/{path}/?reason=x").status_code == 404
