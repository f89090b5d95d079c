"""The REST API of metrics, experiments, results and outcomes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from rest_framework.test import APIClient

from apps.experiments.models import Experiment, OutcomeRow
from apps.experiments.results import refresh_result
from apps.models.models import ModelRole, Role
from apps.rollouts.models import Rollout
from tests.experiments.factories import (
    NOW,
    expose,
    make_draft,
    make_metric,
    make_model,
    make_running,
)
from tests.rollouts.factories import make_plan

pytestmark = pytest.mark.django_db

ROOT = "/api/v1"
MOVES = ["start", "pause", "resume", "stop", "abandon", "ship", "weights", "refresh", "snapshots"]
VARIANTS = [
    {"name": "weak", "version": 1, "weight_bp": 5_000, "is_control": True},
    {"name": "strong", "version": 2, "weight_bp": 5_000},
]


def client_of(role: Role | None) -> APIClient:
    user = User.objects.create_user(username=f"a-{role}")
    if role is not None:
        ModelRole.objects.create(user=user, role=role)
    client = APIClient()
    client.force_authenticate(user)
    return client


@pytest.fixture
def operator() -> APIClient:
    return client_of(Role.OPERATOR)


@pytest.fixture
def viewer() -> APIClient:
    return client_of(Role.VIEWER)


def draft_body(**fields: Any) -> dict[str, Any]:
    body = {"name": "first", "model": "digits", "metric": "accuracy", "variants": VARIANTS}
    return body | fields


def row(event_id: str = "e1", **fields: Any) -> dict[str, Any]:
    return {"event_id": event_id, "unit_id": "u1", "metric": "accuracy", "value": 1} | fields


def test_a_metric_is_created_and_listed(operator: APIClient) -> None:
    created = operator.post(f"{ROOT}/metrics/", {"name": "accuracy", "kind": "proportion"})
    listed = operator.get(f"{ROOT}/metrics/").json()

    assert created.status_code == 201
    assert len(listed["results"]) == 1
    assert listed["results"][0] == {
        "name": "accuracy",
        "kind": "proportion",
        "direction": "increase",
        "description": "",
        "source": "outcomes",
        "outcomes_of": None,
        "divided_by": None,
        "per_unit": "first",
        "missing_is_zero": False,
        "quantile_ppm": None,
        "cap": None,
        "window_s": None,
    }
    assert operator.get(f"{ROOT}/metrics/accuracy/").json() == listed["results"][0]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"name": "accuracy", "kind": "median"}, 400, "kind:"),
        ({"kind": "mean"}, 400, "name: This field is required."),
        ({"name": "a b", "kind": "mean"}, 400, "name: A name has"),
        ({"name": "taken", "kind": "mean"}, 409, "already exists"),
    ],
)
def test_a_bad_metric_is_refused(
    operator: APIClient, body: dict[str, Any], status: int, message: str
) -> None:
    make_metric("taken")

    response = operator.post(f"{ROOT}/metrics/", body)

    assert response.status_code == status
    assert message in response.json()["error"]["message"]


def test_an_experiment_is_created_listed_and_shown(operator: APIClient) -> None:
    make_model()
    make_metric()

    created = operator.post(f"{ROOT}/experiments/", draft_body(coverage_bp=5_000))

    assert created.status_code == 201
    shown = operator.get(f"{ROOT}/experiments/first/").json()
    assert created.json() == shown
    assert (shown["state"], shown["model"], shown["coverage_bp"]) == ("draft", "digits", 5_000)
    assert shown["variants"] == [VARIANTS[0], VARIANTS[1] | {"is_control": False}]
    assert operator.get(f"{ROOT}/experiments/").json()["results"] == [shown]


def test_the_list_is_filtered_by_model_and_state(operator: APIClient) -> None:
    make_draft()

    assert operator.get(f"{ROOT}/experiments/?model=digits&state=draft").json()["count"] == 1
    assert operator.get(f"{ROOT}/experiments/?model=letters").json()["count"] == 0


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"model": "nope"}, 404, "nope"),
        ({"metric": "nope"}, 404, "no metric named nope"),
        ({"variants": VARIANTS[:1]}, 400, "2 to 20 variants"),
        ({"variants": "x"}, 400, "variants"),
        ({"variants": [{"name": "a"}]}, 400, ".weight_bp: This field is required."),
        (
            {"variants": [VARIANTS[0], {"name": "b", "weight_bp": 5_000}]},
            400,
            "b: version is missing",
        ),
        ({"colour": "red"}, 400, "colour: Unknown field"),
        ({"metrics": [{"metric": "accuracy"}]}, 400, "metrics, not both"),
        ({"tenants": ["nobody"]}, 400, "there is no tenant 'nobody'"),
        ({"headers": {"cookie": ["a"]}}, 400, "the values of cookie are secrets"),
        ({"coverage_bp": 0}, 400, "coverage_bp is 0"),
        ({"planned_units": "many"}, 400, "planned_units: A valid integer is required."),
        ({"name": "new"}, 400, "choose another name"),
    ],
)
def test_an_invalid_experiment_is_refused_and_not_created(
    operator: APIClient, fields: dict[str, Any], status: int, message: str
) -> None:
    make_model()
    make_metric()

    response = operator.post(f"{ROOT}/experiments/", draft_body(**fields))

    assert response.status_code == status
    assert message in response.json()["error"]["message"]
    assert not Experiment.objects.exists()


def test_starting_and_stopping_answer_with_the_new_state(operator: APIClient) -> None:
    make_draft()

    started = operator.post(f"{ROOT}/experiments/weak-or-strong/start/", {"revision": 0})
    stopped = operator.post(f"{ROOT}/experiments/weak-or-strong/stop/", {"reason": "enough"})

    assert (started.status_code, started.json()["state"]) == (200, "preparing")
    assert (stopped.status_code, stopped.json()["state"]) == (200, "completed")
    assert stopped.json()["reason"] == "enough"


def test_events_hold_transition_reason_and_actor(operator: APIClient) -> None:
    make_draft()
    operator.post(f"{ROOT}/experiments/weak-or-strong/start/", {"reason": "at last"})
    operator.post(f"{ROOT}/experiments/weak-or-strong/stop/", {"reason": "enough"})

    events = operator.get(f"{ROOT}/experiments/weak-or-strong/events/").json()["results"]

    assert [(e["from_state"], e["to_state"], e["reason"]) for e in events[-2:]] == [
        ("draft", "preparing", "at last"),
        ("preparing", "completed", "enough"),
    ]
    assert {e["actor"] for e in events[-2:]} == {"a-operator"}


def test_it_is_paused_reweighted_resumed_and_abandoned(operator: APIClient) -> None:
    make_running()
    at = f"{ROOT}/experiments/weak-or-strong"
    weights = {"weights_bp": {"weak": 9_000, "strong": 1_000}, "reason": "careful"}

    responses = [
        operator.post(f"{at}/pause/", {"reason": "an incident"}),
        operator.post(f"{at}/weights/", weights),
        operator.post(f"{at}/resume/"),
        operator.post(f"{at}/refresh/"),
        operator.post(f"{at}/abandon/", {"reason": "wrong metric"}),
    ]

    assert [response.status_code for response in responses] == [200, 200, 200, 202, 200]
    states = [response.json()["state"] for response in responses]
    assert states == ["paused", "paused", "running", "running", "completed"]
    assert responses[-1].json()["conclusion"] == "abandoned"
    assert [v["weight_bp"] for v in responses[-1].json()["variants"]] == [9_000, 1_000]


def test_shipping_without_a_winner_is_a_conflict_unless_forced(
    operator: APIClient,
) -> None:
    make_running()
    make_plan()
    at = f"{ROOT}/experiments/weak-or-strong/ship/"

    refused = operator.post(at, {})
    forced = operator.post(at, {"variant": "strong", "force": True, "reason": "we know it"})

    assert (refused.status_code, forced.status_code) == (409, 200)
    assert "there is no winner yet" in refused.json()["error"]["message"]
    assert forced.json()["rollout"] == str(Rollout.objects.get().pk)


def test_a_draft_is_changed_and_deleted(operator: APIClient) -> None:
    make_draft()
    at = f"{ROOT}/experiments/weak-or-strong/"

    changed = operator.patch(at, {"coverage_bp": 100, "revision": 0})
    stale = operator.patch(at, {"coverage_bp": 200, "revision": 0})
    bad = operator.patch(at, {"variants": [{"name": "a"}]})

    assert (changed.status_code, changed.json()["coverage_bp"]) == (200, 100)
    assert (stale.status_code, bad.status_code) == (409, 400)
    assert operator.delete(at).status_code == 204
    assert not Experiment.objects.exists()


def test_snapshots_are_created_listed_and_found_by_id(operator: APIClient) -> None:
    experiment = make_running()
    at = f"{ROOT}/experiments/weak-or-strong/snapshots/"
    too_early = operator.post(at, {})
    Experiment.objects.filter(pk=experiment.pk).update(result={"verdict": "so far", "metrics": []})

    created = operator.post(at, {"note": "for the meeting"})

    listed = operator.get(at).json()["results"]
    assert (too_early.status_code, created.status_code) == (409, 201)
    assert [(row["id"], row["note"]) for row in listed] == [
        (created.json()["id"], "for the meeting")
    ]
    snapshot = operator.get(f"{ROOT}/snapshots/{created.json()['id']}/").json()
    assert snapshot["result"]["verdict"] == "so far"


def test_results_are_available_as_csv(viewer: APIClient) -> None:
    experiment = make_running()
    arm = {"name": "weak", "is_control": True, "n": 3, "mean": 0.5}
    result = {"metrics": [{"name": "accuracy", "role": "primary", "arms": [arm]}]}
    Experiment.objects.filter(pk=experiment.pk).update(result=result)

    response = viewer.get(f"{ROOT}/experiments/weak-or-strong/results/?format=csv")

    assert response["content-type"].startswith("text/csv")
    header, row = response.content.decode().splitlines()
    assert header.startswith("metric,role,kind")
    assert row.startswith("accuracy,primary")
    missing = viewer.get(f"{ROOT}/experiments/nope/results/?format=csv")
    assert (missing.status_code, missing.content[:2]) == (404, b"No")


def test_a_metric_is_described_and_deleted(operator: APIClient) -> None:
    make_metric()
    at = f"{ROOT}/metrics/accuracy/"

    assert operator.patch(at, {"kind": "mean"}).status_code == 400
    assert operator.patch(at, {"description": "right?"}).json()["description"] == "right?"
    assert operator.delete(at).status_code == 204
    assert operator.get(at).status_code == 404


@pytest.mark.parametrize(("act", "make"), [("start", make_running), ("stop", make_draft)])
def test_a_transition_that_the_state_forbids_is_a_conflict(
    operator: APIClient, act: str, make: Callable[[], Experiment]
) -> None:
    make()

    response = operator.post(f"{ROOT}/experiments/weak-or-strong/{act}/")

    assert response.status_code == 409
    assert response.json()["error"]["code"] == "illegal_transition"


def test_a_stale_revision_is_a_conflict(operator: APIClient) -> None:
    make_draft()

    response = operator.post(f"{ROOT}/experiments/weak-or-strong/start/", {"revision": 4})

    assert response.status_code == 409


def test_results_hold_the_time_of_the_analysis(viewer: APIClient) -> None:
    experiment = make_running()
    expose(experiment, "u", "weak")
    empty = viewer.get(f"{ROOT}/experiments/weak-or-strong/results/").json()
    refresh_result(experiment, NOW)

    response = viewer.get(f"{ROOT}/experiments/weak-or-strong/results/").json()

    assert (empty["result"], empty["refreshed_at"]) == ({}, None)
    assert response["refreshed_at"] == "2026-03-01T12:00:00Z"
    assert response["result"]["verdict"].startswith("Not enough data")
    assert response["result"]["metrics"][0]["arms"][0]["exposed"] == 1


@pytest.mark.parametrize("path", ["", "/results"])
def test_an_unknown_experiment_is_not_found(viewer: APIClient, path: str) -> None:
    assert viewer.get(f"{ROOT}/experiments/nope{path}/").status_code == 404


def test_outcomes_are_recorded_and_a_repeated_batch_is_harmless(operator: APIClient) -> None:
    make_metric()
    body = {"outcomes": [row("a"), row("b", value=True), row("c", value=0.5)]}

    first = operator.post(f"{ROOT}/outcomes/", body)
    second = operator.post(f"{ROOT}/outcomes/", body)

    assert first.status_code == second.status_code == 200
    assert (first.json()["recorded"], second.json()["recorded"]) == (2, 0)
    assert second.json()["duplicates"] == 2
    assert OutcomeRow.objects.count() == 2


def test_outcomes_of_unexposed_units_are_stored_and_reported(operator: APIClient) -> None:
    experiment = make_running()
    expose(experiment, "known", "weak")
    rows = [row("a", unit_id="known"), row("b", unit_id="new"), row("c", unit_id="new", value=7)]

    report = operator.post(f"{ROOT}/outcomes/", {"outcomes": rows}).json()

    assert (report["recorded"], report["unexposed"]) == (2, [1])
    assert [refusal["index"] for refusal in report["refused"]] == [2]

    Experiment.objects.update(state="completed", refresh_due_at=None)
    after = operator.post(f"{ROOT}/outcomes/", {"outcomes": [row("d", unit_id="known")]}).json()

    assert after["unexposed"] == [0]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("x", value="1"), "Expected"),
        (row("x", value=None), "Expected"),
        ({"event_id": "x"}, "missing required field `metric`"),
        (row("x", colour="red"), "unknown field `colour`"),
        (row("x", occurred_at="2026-01-01T00:00:00"), "timezone"),
        (row("x", occurred_at="yesterday"), "RFC3339"),
        (row("x", occurred_at="2999-01-01T00:00:00Z"), "more than an hour in the future"),
        (row("x", metric="revenue"), "unknown metric"),
        ("x", "Expected `object`"),
    ],
)
def test_a_refused_outcome_is_reported_by_its_position(
    operator: APIClient, bad: Any, reason: str
) -> None:
    make_metric()

    report = operator.post(f"{ROOT}/outcomes/", {"outcomes": [row("a"), bad, row("b")]}).json()

    assert report["recorded"] == 2
    assert report["refused"][0]["index"] == 1
    assert reason in report["refused"][0]["reason"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("x\ud800"), "event_id contains a lone surrogate"),
        (row("x", unit_id="\ud800"), "unit_id contains a lone surrogate"),
        (row("x", metric="\ud800"), "metric contains a lone surrogate"),
        (row("x", **{"\ud800": 1}), "surrogates not allowed"),
    ],
)
def test_a_lone_surrogate_refuses_only_its_row(operator: APIClient, bad: Any, reason: str) -> None:
    make_metric()
    body = json.dumps({"outcomes": [bad, row("b")]})

    report = operator.post(f"{ROOT}/outcomes/", body, content_type="application/json").json()

    assert report["recorded"] == 1
    assert reason in report["refused"][0]["reason"]


@pytest.mark.parametrize("body", [[], {"outcomes": {}}, {}, {"outcomes": [row()] * 10_001}])
def test_a_malformed_body_is_refused_as_a_whole(operator: APIClient, body: Any) -> None:
    make_metric()

    response = operator.post(f"{ROOT}/outcomes/", body)

    assert response.status_code == 400
    assert not OutcomeRow.objects.exists()


def test_a_body_above_the_limit_is_not_read(operator: APIClient) -> None:
    body = b'{"outcomes": [' + b" " * (16 * 1024**2) + b"]}"

    response = operator.post(f"{ROOT}/outcomes/", body, content_type="application/json")

    assert response.status_code == 413


def test_a_viewer_reads_and_changes_nothing(viewer: APIClient) -> None:
    make_draft()
    at = f"{ROOT}/experiments/weak-or-strong"
    refused = [
        *(viewer.post(f"{at}/{act}/") for act in MOVES),
        viewer.patch(f"{at}/", {"coverage_bp": 1}),
        viewer.delete(f"{at}/"),
        viewer.patch(f"{ROOT}/metrics/accuracy/", {"description": ""}),
        viewer.delete(f"{ROOT}/metrics/accuracy/"),
        viewer.post(f"{ROOT}/metrics/", {"name": "m", "kind": "mean"}),
        viewer.post(f"{ROOT}/experiments/", draft_body()),
        viewer.post(f"{ROOT}/outcomes/", {"outcomes": []}),
    ]

    assert {response.status_code for response in refused} == {403}
    assert viewer.get(f"{ROOT}/experiments/weak-or-strong/").status_code == 200


def test_an_operator_of_another_model_may_not_start_it() -> None:
    make_draft()
    user = User.objects.create_user(username="other")
    ModelRole.objects.create(user=user, model=make_model("letters"), role=Role.OPERATOR)
    client = APIClient()
    client.force_authenticate(user)

    assert client.post(f"{ROOT}/experiments/weak-or-strong/start/").status_code == 403


def test_the_api_needs_a_token() -> None:
    assert APIClient().get(f"{ROOT}/experiments/").status_code in {401, 403}
