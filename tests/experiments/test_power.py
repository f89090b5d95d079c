"""Sample sizes of drafts: baselines, traffic, and invalid requests."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from rest_framework.test import APIClient
from xxhash import xxh3_64_intdigest

from apps.experiments.models import Experiment, UnitCount
from apps.experiments.power import PowerRequest, plan_size
from apps.experiments.services import MetricChoice, VariantSpec
from apps.experiments.unit_sketches import merge, to_signed
from apps.lib.clock import database_now
from apps.lib.errors import Invalid
from apps.models.models import ModelRole, Role
from tests.experiments.factories import NOW, make_draft, make_metric, make_running, observe
from tests.experiments.stored import metric, stored_result

pytestmark = pytest.mark.django_db
PATH = "/api/v1/experiments/weak-or-strong/power/"
PAGE = "/experiments/weak-or-strong/power/"
REQUEST = PowerRequest(mean=0.1, relative=0.2)


def sizes(plan: dict[str, Any]) -> list[int]:
    return [size["units"] for size in plan["sizes"]]


def count_units(experiment: Experiment, hours: int, units: int, *, are_new: bool) -> None:
    """Count `units` units in each hour: new ones each time, or the same."""
    this_hour = NOW.replace(minute=0, second=0, microsecond=0)
    for back in range(1, hours + 1):
        first = back * units if are_new else 0
        hashes = merge([xxh3_64_intdigest(b"%d" % i) for i in range(first, first + units)])
        hour = this_hour - timedelta(hours=back)
        UnitCount.objects.create(model=experiment.model, hour=hour, smallest=to_signed(hashes))


def test_each_reading_gets_half_of_alpha() -> None:
    plan = plan_size(make_draft(), REQUEST, NOW)

    fixed, sequential = sizes(plan)
    assert plan["effect"] == pytest.approx(0.02)
    assert plan["level"] == 0.025
    assert 2 * 4_600 < fixed < 2 * 4_700
    assert 1.4 < sequential / fixed < 1.7
    assert plan["sizes"][0]["days"] is None
    assert "no data plane" in plan["traffic"]["summary"]


def test_the_baseline_is_control_of_the_last_experiment() -> None:
    shown = stored_result(metric(name="accuracy"))
    past = make_running(name="past")
    Experiment.objects.filter(pk=past.pk).update(result=shown, refreshed_at=NOW, state="completed")
    draft = make_draft(model=past.model, metric=past.metric)

    plan = plan_size(draft, PowerRequest(), NOW)

    control = next(arm for arm in shown["metrics"][0]["arms"] if arm["is_control"])
    assert plan["baseline"]["mean"] == control["mean"]
    assert plan["baseline"]["source"] == "control of past"
    assert plan["effect_relative"] == pytest.approx(0.05)


def test_without_an_experiment_the_baseline_is_from_recent_outcomes() -> None:
    draft = make_draft(metric=make_metric("spend", "mean"))
    for i in range(120):
        observe(draft.metric, f"u{i}", float(i % 2))

    plan = plan_size(draft, PowerRequest(), database_now())

    assert plan["baseline"]["mean"] == pytest.approx(0.5)
    assert plan["baseline"]["sd"] == pytest.approx(0.502, abs=1e-3)
    assert "120 units" in plan["baseline"]["source"]


def test_without_data_the_reason_names_the_missing_values() -> None:
    plan = plan_size(make_draft(metric=make_metric("spend", "mean")), PowerRequest(), NOW)
    assert "sizes" not in plan
    assert "give its mean and the sd" in plan["reason"]


def test_days_follow_from_new_units() -> None:
    draft = make_draft(coverage_bp=5_000, holdout_bp=1_000)
    count_units(draft, 72, 100, are_new=True)

    plan = plan_size(draft, REQUEST, NOW)

    a_day = plan["traffic"]["units_a_day"]
    assert a_day == pytest.approx(24 * 100 * 0.5 * 0.9, rel=0.2)
    assert plan["traffic"]["growth"] == pytest.approx(1.0, abs=0.1)
    assert plan["sizes"][0]["days"] == pytest.approx(sizes(plan)[0] / a_day, rel=0.2)
    effects = [point["fixed"] for point in plan["curve"]]
    assert effects == sorted(effects, reverse=True)


def test_the_same_units_every_day_do_not_enlarge_the_experiment() -> None:
    draft = make_draft()
    count_units(draft, 72, 100, are_new=False)

    plan = plan_size(draft, REQUEST, NOW)

    assert plan["traffic"]["growth"] == 0.0
    assert plan["sizes"][0]["days"] is None


def test_a_guardrail_has_a_size_of_its_own() -> None:
    past = make_running(name="past")
    result = stored_result(metric(name="accuracy"))
    Experiment.objects.filter(pk=past.pk).update(result=result, refreshed_at=NOW, state="completed")
    latency = make_metric("latency", "mean")
    uses = [MetricChoice(latency), MetricChoice(past.metric, "guardrail", margin=0.01)]
    draft = make_draft(model=past.model, metrics=uses)

    plan = plan_size(draft, PowerRequest(mean=20.0, sd=5.0), NOW)

    (row,) = plan["guardrails"]
    assert row["metric"] == "accuracy"
    assert row["units"] > 10_000


@pytest.mark.parametrize(
    ("power_request", "message"),
    [
        (PowerRequest(mean=0.1, effect=0.0), "other than 0"),
        (PowerRequest(mean=0.1, effect=0.95), "beyond 0 or 1"),
        (PowerRequest(mean=0.1, effect=0.01, relative=0.1), "absolute or a relative"),
        (PowerRequest(mean=0.0, relative=0.1), "between 0 and 1"),
        (PowerRequest(mean=0.1, power=1.0), "power"),
        (PowerRequest(mean=0.1, power=0.001), "power"),
    ],
)
def test_an_invalid_request_is_refused(power_request: PowerRequest, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        plan_size(make_draft(), power_request, NOW)


def test_a_spread_without_a_mean_is_refused() -> None:
    draft = make_draft(metric=make_metric("spend", "mean"))
    for request in (PowerRequest(mean=3.0), PowerRequest(sd=3.0), PowerRequest(mean=3.0, sd=-1.0)):
        with pytest.raises(Invalid, match=r"sd|spread"):
            plan_size(draft, request, NOW)


@pytest.fixture
def anna(client: Client) -> User:
    user = User.objects.create_user("anna")
    ModelRole.objects.create(user=user, role=Role.OPERATOR)
    client.force_login(user)
    return user


def test_rest_returns_the_plan_or_the_error(anna: User) -> None:
    make_draft()
    api = APIClient()
    api.force_authenticate(anna)

    plan = api.get(PATH, {"mean": "0.1", "relative": "0.2"})
    bad = [api.get(PATH, query) for query in ({"power": "2"}, {"mean": "x"}, {"efect": "1"})]

    assert sizes(plan.json())[0] > 9_000
    assert [response.status_code for response in bad] == [400] * 3
    assert "efect" in bad[2].json()["error"]["message"]
    assert api.get(PATH.replace("weak", "no")).status_code == 404


def test_the_page_shows_the_plan_and_sets_planned_units(anna: User, client: Client) -> None:
    draft = make_draft()
    shown = client.get(PAGE, {"mean": "0.1", "relative": "20", "power": "80"})
    units = sizes(plan_size(draft, REQUEST, NOW))[0]
    assert f"{units:,}" in shown.content.decode()

    taken = client.post(PAGE, {"units": units, "revision": draft.revision}, follow=True)

    draft.refresh_from_db()
    assert draft.planned_units == units
    assert f"now plans {units:,} units" in taken.content.decode()


def test_the_page_shows_errors_and_missing_values(anna: User, client: Client) -> None:
    make_draft()
    empty, wrong = client.get(PAGE), client.get(PAGE, {"mean": "0.1", "relative": "2000"})
    stale = client.post(PAGE, {"units": "9", "revision": 77})

    assert "has no data on" in empty.content.decode()
    assert (empty.status_code, wrong.status_code) == (200, 400)
    assert "beyond 0 or 1" in wrong.content.decode()
    assert stale.status_code == 409


def test_skewed_values_need_more_units_with_uneven_weights() -> None:
    shown = stored_result(metric(name="spend", kind="mean"))
    for compared in shown["metrics"][0]["comparisons"]:
        compared["skewness"] = 40.0
    past = make_running(name="past", metric=make_metric("spend", "mean"))
    Experiment.objects.filter(pk=past.pk).update(result=shown, refreshed_at=NOW, state="completed")
    uneven = (VariantSpec("weak", 1, 9_500, is_control=True), VariantSpec("strong", 2, 500))
    draft = make_draft(model=past.model, metric=past.metric, variants=uneven)
    even = make_draft(name="even", model=past.model, metric=past.metric)
    large = PowerRequest(relative=1.0)

    plan, other = plan_size(draft, large, NOW), plan_size(even, large, NOW)

    # 40² · (0.95 − 0.05)²/(0.95 · 0.05)
    assert sizes(plan)[0] == 27_285
    assert "skewness 40): with these weights there is no verdict below 27,285 units" in plan["note"]
    assert plan["baseline"]["skewness"] == 40.0
    assert other["note"] == ""
    assert sizes(other)[0] < 27_285
