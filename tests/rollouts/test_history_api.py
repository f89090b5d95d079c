"""What served a model at an instant, over the API: the answer, or what the question lacks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.rollouts.models import Rollout
from apps.rollouts.publication import publish_table
from apps.rollouts.services import abort_rollout
from tests.rollouts.callers import caller
from tests.rollouts.factories import ANNA, make_baking, make_model

pytestmark = pytest.mark.django_db

SERVING = "/api/v1/models/digits/serving/"


@pytest.fixture
def rollout() -> Rollout:
    """Return a rollout of a model that served its stable version alone for an hour before."""
    model = make_model()
    publish_table(reason="start", actor=ANNA, now=database_now() - timedelta(hours=1))
    return make_baking(model)


def test_an_instant_tells_what_served_and_who_decided_it(rollout: Rollout) -> None:
    during = database_now()
    abort_rollout(rollout=rollout, actor=ANNA, now=during + timedelta(seconds=5))

    result = caller().get(SERVING, {"at": during.isoformat()}).json()

    assert (result["model"], result["stable"], result["actor"]) == ("digits", "1", "anna")
    assert (result["split"]["version"], result["split"]["weight_bp"]) == ("2", 500)
    assert result["decided_by"] == {"kind": "rollout", "id": str(rollout.pk)}


def test_before_the_rollout_stable_served_alone(rollout: Rollout) -> None:
    at = rollout.started_at - timedelta(minutes=1)

    result = caller().get(SERVING, {"at": at.isoformat()}).json()

    assert (result["stable"], result["split"], result["reason"]) == ("1", None, "start")
    assert result["decided_by"] == {"kind": "", "id": ""}


def test_without_an_instant_the_present_is_told(rollout: Rollout) -> None:
    assert caller().get(SERVING).json()["split"]["version"] == "2"


@pytest.mark.parametrize(
    ("at", "status", "message"),
    [
        ("2026-11-25T14:05:00", 400, "has no time zone"),
        ("2026-11-25", 400, "has no time zone"),
        ("yesterday", 400, "ISO 8601"),
        ("2026-11-25T14:05:00 02:00", 400, "%2B"),
        ("", 400, "ISO 8601"),
        ("0001-01-01T00:00:00+14:00", 400, "out of range"),
        ("2001-01-01T00:00:00Z", 404, "No serving history"),
    ],
)
@pytest.mark.usefixtures("rollout")
def test_an_instant_that_is_none_is_named(at: str, status: int, message: str) -> None:
    answer = caller().get(SERVING, {"at": at})

    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_the_history_is_told_from_the_latest_back(rollout: Rollout) -> None:
    rows: list[dict[str, Any]] = (
        caller().get("/api/v1/models/digits/serving-history/").json()["results"]
    )

    assert [row["split"] and row["split"]["weight_bp"] for row in rows] == [500, None]
    assert rows[0]["at"] > rows[1]["at"]


def test_the_past_of_a_model_that_is_not_there_is_not_found() -> None:
    assert caller().get("/api/v1/models/nobody/serving/").status_code == 404
