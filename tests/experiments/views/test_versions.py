"""Outcomes of a version's requests over time, on its page and in the API."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client
from rest_framework.test import APIClient

from apps.experiments.ingestion import record_outcomes
from apps.experiments.selectors.versions import outcomes_of
from apps.lib.clock import database_now
from apps.models.models import ModelVersion
from tests.experiments.factories import make_metric, make_model, outcome

pytestmark = pytest.mark.django_db

PAGE = "/experiments/of-version/digits/2/"
API = "/api/v1/version-outcomes/"


def label(hours_ago: float, right: list[float], metric: str = "accuracy") -> None:
    """Record one label per value of `right`, for answers of version 2 `hours_ago`."""
    now = database_now()
    at_ns = round((now - timedelta(hours=hours_ago)).timestamp()) * 10**9
    sent = [
        outcome(f"{metric}-{hours_ago}-{i}", unit_id="", value=value, metric=metric,
                occurred_at_ms=at_ns // 10**6, request_id=f"digits:2:a-{at_ns + i:x}")
        for i, value in enumerate(right)
    ]  # fmt: skip
    assert record_outcomes(sent, now).recorded == len(right)


@pytest.fixture
def version() -> ModelVersion:
    make_model()
    make_metric()
    label(0, [1.0, 1.0, 1.0, 0.0])
    label(72, [0.0] * 4)
    label(24 * 20, [0.0] * 2)
    return ModelVersion.objects.get(number=2)


def test_accuracy_is_of_the_hour_of_the_answers(version: ModelVersion) -> None:
    (metric,) = outcomes_of(version, database_now())

    assert metric["last_day"] == {"n": 4, "mean": 0.75, "error": pytest.approx(0.2165, abs=1e-4)}
    assert (metric["ever"]["n"], metric["ever"]["mean"]) == (10, 0.3)
    assert [(hour["n"], hour["mean"]) for hour in metric["hours"]] == [(4, 0.0), (4, 0.75)]


def test_the_page_of_the_version_shows_it_with_n(version: ModelVersion, viewer: Client) -> None:
    page = viewer.get("/models/digits/versions/2/").content.decode()
    assert f'hx-get="{PAGE}"' in page

    part = viewer.get(PAGE).content.decode()

    assert "Outcomes of its answers" in part
    assert "<b>0.75</b>" in part
    assert viewer.get(PAGE.replace("/2/", "/1/")).content.decode().strip() == ""
    assert viewer.get(PAGE.replace("/2/", "/9/")).status_code == 404


def test_the_api_says_the_same(version: ModelVersion) -> None:
    api = APIClient()
    api.force_authenticate(User.objects.create_user("reader"))
    (metric,) = api.get(API, {"model": "digits", "version": 2}).json()

    assert (metric["metric"], metric["last_day"]["mean"], len(metric["hours"])) == (
        "accuracy",
        0.75,
        2,
    )
    assert api.get(API, {"model": "digits", "version": 9}).status_code == 404
    assert api.get(API, {"model": "digits"}).status_code == 400
