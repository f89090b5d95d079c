"""Pages of experiments: with nothing, with a result, with ten variants; live, and who may act."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from apps.experiments.models import Experiment, Metric
from apps.experiments.results import refresh_result
from apps.experiments.services import VariantSpec, start_experiment, stop_experiment
from apps.models.models import ModelRole, Role
from tests.experiments.factories import (
    ANNA,
    HALVES,
    NOW,
    expose,
    make_draft,
    make_metric,
    make_model,
    make_running,
    observe,
)

pytestmark = pytest.mark.django_db

PAGE = "/experiments/weak-or-strong/"
HTMX = {"HX-Request": "true"}


@pytest.fixture
def viewer(client: Client) -> Client:
    client.force_login(User.objects.create_user("vera"))
    return client


@pytest.fixture
def operator(client: Client) -> Client:
    user = User.objects.create_user("otto")
    ModelRole.objects.create(user=user, role=Role.OPERATOR)
    client.force_login(user)
    return client


def text_of(client: Client, path: str, **options: Any) -> str:
    answer = client.get(path, **options)
    assert answer.status_code == 200
    return answer.content.decode()


def figure(page: str, name: str) -> Any:
    found = re.search(rf'<script id="{name}-data" type="application/json">(.*?)</script>', page)
    assert found is not None
    return json.loads(found[1])


def stamp(page: str) -> str:
    found = re.search(r"live/\?stamp=(\w+)", page)
    assert found is not None
    return found[1]


def rows(count: int, **changes: Any) -> dict[str, Any]:
    """Return the new-experiment form as a browser posts it, with so many variants."""
    data: dict[str, Any] = {
        "model": "digits",
        "name": "first",
        "metric": Metric.objects.get().pk,
        "coverage": "100",
        "planned_units": "1000",
        "alpha": "5",
        "variants-TOTAL_FORMS": str(count),
        "variants-INITIAL_FORMS": "0",
    }
    for i in range(count):
        data |= {f"variants-{i}-name": f"v{i}", f"variants-{i}-version": str(i % 2 + 1)}
        data[f"variants-{i}-weight"] = str(100 / count)
    return data | changes


def test_an_empty_list_says_what_an_experiment_is(viewer: Client) -> None:
    page = text_of(viewer, "/experiments/")

    assert "No experiment yet" in page
    assert "No metric yet" in page


def test_the_list_shows_state_and_verdict(viewer: Client) -> None:
    refresh_result(make_running(), NOW)

    page = text_of(viewer, "/experiments/")

    assert "weak-or-strong" in page
    assert "running" in page
    assert "Not enough data" in page


def test_a_page_without_data_says_so_and_draws_nothing(viewer: Client) -> None:
    refresh_result(make_running(), NOW)

    page = text_of(viewer, PAGE)

    assert "Not enough data" in page
    assert "NaN" not in page
    assert figure(page, "intervals")["data"] == figure(page, "exposures")["data"] == []


def test_a_page_with_a_result_tells_the_verdict_and_both_readings(viewer: Client) -> None:
    experiment = make_running(planned_units=500)
    for i in range(600):
        expose(experiment, f"u{i}", "strong" if i % 2 else "weak", after_s=i / 10)
        observe(experiment.metric, f"u{i}", float(i % 20 != 1 if i % 2 else i % 4 != 0), 100)
    refresh_result(experiment, NOW + timedelta(minutes=2))

    page = text_of(viewer, PAGE)

    assert "strong is better than weak" in page
    assert "yes, better" in page
    assert "Interval, one look" in page
    assert [len(t["x"]) for t in figure(page, "intervals")["data"]] == [1, 1]
    assert [t["y"][-1] for t in figure(page, "exposures")["data"]] == [300, 300]


def test_ten_variants_have_ten_rows_and_ten_lines(viewer: Client) -> None:
    specs = [VariantSpec(f"v{i}", i + 1, 1_000, is_control=i == 0) for i in range(10)]
    metric = make_metric("amount", Metric.Kind.MEAN)
    experiment = make_running(model=make_model(versions=10), metric=metric, variants=specs)
    for i in range(60):
        expose(experiment, f"u{i}", f"v{i % 10}")
        observe(experiment.metric, f"u{i}", float(i))
    refresh_result(experiment, NOW + timedelta(minutes=2))

    page = text_of(viewer, PAGE)

    assert page.count('data-label="Version"') == 10
    assert len(figure(page, "exposures")["data"]) == 10


def test_a_poll_of_what_is_shown_already_answers_204(viewer: Client) -> None:
    experiment = make_running()
    shown = stamp(text_of(viewer, PAGE))

    unchanged = viewer.get(f"{PAGE}live/?stamp={shown}", headers=HTMX)
    refresh_result(experiment, NOW)
    changed = viewer.get(f"{PAGE}live/?stamp={shown}", headers=HTMX)

    assert unchanged.status_code == 204
    assert changed.status_code == 200
    assert changed.content.decode().startswith('<div id="live"')
    assert 'hx-swap-oob="true"' in changed.content.decode()


def test_a_completed_experiment_is_polled_no_more(viewer: Client) -> None:
    stop_experiment(experiment=make_running(), actor=ANNA, now=NOW)

    page = text_of(viewer, PAGE)

    assert "live/?stamp=" not in page
    assert "Frozen" in page


def test_a_preparing_one_names_what_it_waits_for(viewer: Client) -> None:
    start_experiment(experiment=make_draft(), actor=ANNA, now=NOW)

    page = text_of(viewer, PAGE)

    assert "digits:2 on local" in page
    assert "loading" in page


def test_an_unknown_experiment_is_not_found(viewer: Client) -> None:
    assert viewer.get("/experiments/nope/").status_code == 404


def test_an_operator_starts_and_stops_it(operator: Client) -> None:
    experiment = make_draft()

    started = operator.post(f"{PAGE}start/", {"revision": 0}, headers=HTMX)
    stopped = operator.post(f"{PAGE}stop/", {"revision": 1})

    experiment.refresh_from_db()
    assert started.headers["HX-Redirect"] == stopped.headers["Location"] == PAGE
    assert experiment.state == "completed"
    assert "stopped by otto" in text_of(operator, PAGE)


def test_a_stale_page_changes_nothing_and_says_why(operator: Client) -> None:
    experiment = make_draft()

    operator.post(f"{PAGE}start/", {"revision": 3})

    experiment.refresh_from_db()
    assert experiment.state == "draft"
    assert "was changed meanwhile" in text_of(operator, PAGE)


def test_a_viewer_sees_no_button_and_may_not_act(viewer: Client) -> None:
    make_draft()

    assert "/start/" not in text_of(viewer, PAGE)
    assert viewer.post(f"{PAGE}start/").status_code == 403
    assert viewer.post("/experiments/metrics/new/").status_code == 403


def test_the_form_offers_a_half_each_for_stable_and_the_newest(operator: Client) -> None:
    make_model()
    make_metric()

    page = text_of(operator, "/experiments/new/?model=digits")

    assert '<option value="1" selected>digits:1 (stable)</option>' in page
    assert '<option value="2" selected>digits:2</option>' in page


def test_the_form_says_what_is_missing_before_an_experiment_can_be_made(operator: Client) -> None:
    assert "No model has a stable version yet" in text_of(operator, "/experiments/new/")

    make_model()

    assert "There is no metric yet" in text_of(operator, "/experiments/new/")


def test_a_draft_is_made_from_the_form_with_an_emptied_row(operator: Client) -> None:
    make_model()
    make_metric()
    emptied = {"variants-1-name": "", "variants-1-weight": "", "variants-0-weight": "33.34"}
    data = rows(4, **emptied)
    data |= {"variants-2-weight": "33.33", "variants-3-weight": "33.33"}

    answer = operator.post("/experiments/new/", data)

    assert answer.headers["Location"] == "/experiments/first/"
    variants = Experiment.objects.get().variants.values_list("name", "weight_bp", "is_control")
    assert list(variants) == [("v0", 3_334, True), ("v2", 3_333, False), ("v3", 3_333, False)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants-1-weight": "49"}, "weights sum to 9900 basis points"),
        ({"variants-1-weight": "x"}, "Enter a number"),
        ({"variants-1-name": ""}, "Fill this in, or empty the row"),
        ({"variants-1-version": "77"}, "Select a valid choice"),
        ({"name": "new"}, "choose another one"),
        ({"name": "weak-or-strong"}, "exists already"),
        ({"metric": ""}, "This field is required"),
        ({"coverage": "101"}, "less than or equal to 100"),
        ({"variants-TOTAL_FORMS": "x"}, "ManagementForm"),
    ],
)
def test_a_mistake_in_the_form_is_named_and_nothing_is_made(
    operator: Client, changes: dict[str, str], message: str
) -> None:
    make_draft()

    answer = operator.post("/experiments/new/", rows(2, **changes))

    assert answer.status_code == 400
    assert message in answer.content.decode()
    assert Experiment.objects.count() == 1


def test_a_metric_is_made_from_the_form_once(operator: Client) -> None:
    data = {"name": "revenue", "kind": "mean", "direction": "increase"}

    first = operator.post("/experiments/metrics/new/", data)
    second = operator.post("/experiments/metrics/new/", data)

    assert first.status_code == 302
    assert second.status_code == 400
    assert "exists already" in second.content.decode()


def test_a_hostile_name_is_shown_as_text(viewer: Client) -> None:
    make_draft(hypothesis="<script>alert(1)</script>", variants=HALVES)

    assert "<script>alert" not in text_of(viewer, PAGE)


@pytest.mark.parametrize("name", ["experiment", "experiment-start", "experiment-stop"])
def test_the_names_of_pages_do_not_lead_to_the_api(name: str) -> None:
    assert reverse(name, args=["x"]).startswith("/experiments/x/")
