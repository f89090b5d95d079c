"""Pages about traffic: with nothing, with a live rollout; live fragments; who may act on what."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.models.models import ModelRole, RegisteredModel, Role
from apps.models.states import DeploymentState
from apps.rollouts.models import Rollout
from apps.rollouts.services import pause_rollout
from apps.rollouts.states import Phase
from tests.confirming import post_yes, question_of
from tests.rollouts.callers import rendered
from tests.rollouts.factories import (
    ANNA,
    judge,
    make_baking,
    make_instance,
    make_model,
    make_plan,
    make_signature,
    make_version,
    place,
    send,
)

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}


@pytest.fixture
def viewer(client: Client) -> Client:
    client.force_login(User.objects.create_user("vera"))
    return client


@pytest.fixture
def operator(client: Client) -> Client:
    user = User.objects.create_user("olga")
    ModelRole.objects.create(user=user, role=Role.OPERATOR)
    client.force_login(user)
    return client


def text_of(client: Client, path: str, **more: Any) -> str:
    return rendered(client.get(path, **more))


def stamp_in(text: str) -> str:
    match = re.search(r"stamp=([0-9a-f]{16})", text)
    assert match is not None
    return match[1]


def address(rollout: Rollout, action: str = "") -> str:
    return f"/rollouts/{rollout.pk}/{action}"


# --- Overview -----------------------------------------------------------------------------------


def test_the_empty_overview_tells_how_to_register_the_first_model(viewer: Client) -> None:
    text = text_of(viewer, "/")

    assert "mlflow.onnx.log_model" in text
    assert "No data-plane instance is reporting" in text


def test_the_overview_shows_shares_traffic_steps_and_decisions(viewer: Client) -> None:
    make_instance()
    rollout = make_baking(make_model())
    send("digits", 1, requests=120, errors=3)

    text = text_of(viewer, "/")

    assert "stable: version" in text
    assert address(rollout) in text
    assert "95 %" in text
    assert "2.50 %" in text
    assert "The target is ready" in text


def test_the_overview_answers_204_until_something_changes(viewer: Client) -> None:
    make_model()
    stamp = stamp_in(text_of(viewer, "/"))

    assert viewer.get(f"/?stamp={stamp}", headers=HTMX).status_code == 204
    send("digits", 1)
    fragment = viewer.get(f"/?stamp={stamp}", headers=HTMX)

    assert fragment.status_code == 200
    assert b"<html" not in fragment.content


def test_the_overview_says_which_instance_refused_the_table(viewer: Client) -> None:
    make_baking(make_model())
    make_instance("i-9", applied_generation=0, refused_generation=99, refusal="disk full")

    assert "disk full" in text_of(viewer, "/")


def test_the_overviews_queries_do_not_grow_with_models(
    viewer: Client, django_assert_max_num_queries: Any
) -> None:
    for number in range(5):
        make_baking(make_model(f"model-{number}"))
        send(f"model-{number}", 1)

    with django_assert_max_num_queries(28):
        viewer.get("/")


# --- A model ------------------------------------------------------------------------------------


def test_a_model_shows_versions_their_state_and_traffic(viewer: Client) -> None:
    model = make_model()
    place(make_version(model, 4), DeploymentState.FAILED, "INVALID_GRAPH")
    send("digits", 1, requests=600)

    text = text_of(viewer, "/models/digits/")

    assert "INVALID_GRAPH" in text
    assert "10.0" in text
    assert "Promote a version" not in text


def test_a_models_queries_do_not_grow_with_versions(
    operator: Client, django_assert_max_num_queries: Any
) -> None:
    make_baking(make_model(versions=8))

    with django_assert_max_num_queries(30):
        operator.get("/models/digits/")


def test_a_models_charts_are_data_that_the_page_draws(viewer: Client) -> None:
    make_model()
    send("digits", 1)

    text = text_of(viewer, "/models/digits/charts/?span=60", headers=HTMX)

    match = re.search(r'<script id="requests-data" type="application/json">(.*?)</script>', text)
    assert match is not None
    assert json.loads(match[1])["layout"]["yaxis"]["title"]["text"] == "requests/s"
    unchanged = f"/models/digits/charts/?span=60&stamp={stamp_in(text)}"
    assert viewer.get(unchanged, headers=HTMX).status_code == 204


def test_rolling_back_names_its_target_and_does_it(operator: Client) -> None:
    model = make_model(stable=2)
    model.previous_stable = model.versions.get(number=1)
    model.save()

    assert "Roll back to 1" in text_of(operator, "/models/digits/")
    question = question_of(operator, "/models/digits/rollback/")
    assert "from version 2 to version 1" in question
    response = post_yes(operator, "/models/digits/rollback/", headers=HTMX)

    model.refresh_from_db()
    assert response.headers["hx-redirect"] == "/models/digits/"
    assert model.stable is not None
    assert model.stable.number == 1


def test_rolling_back_to_nothing_is_refused_with_the_reason(operator: Client) -> None:
    make_model()

    response = operator.post("/models/digits/rollback/", follow=True)

    assert "no previous stable version" in rendered(response)


# --- Promoting ----------------------------------------------------------------------------------


def test_promoting_shows_the_steps_and_the_difference(operator: Client) -> None:
    make_plan()
    make_version(make_model(), 4, metrics={"accuracy": 0.97})

    text = text_of(operator, "/models/digits/promote/")

    assert "Start the rollout of digits:4" in text
    assert re.search(r"25 %</b><span class=\"bake\">30 min", text)
    assert "0.97" in text
    assert "No data-plane instance is live" in text


def test_another_choice_is_a_fragment(operator: Client) -> None:
    make_plan("careful", (100, 200))
    make_model()

    text = text_of(operator, "/models/digits/promote/?version=2&plan=careful", headers=HTMX)

    assert "<html" not in text
    assert "Start the rollout of digits:2" in text


def test_starting_leads_to_the_rollout(operator: Client) -> None:
    make_plan()
    make_model()

    response = operator.post("/models/digits/promote/", {"version": 2, "plan": "canary"})

    rollout = Rollout.objects.get()
    assert response.headers["location"] == address(rollout)
    assert (rollout.target.number, rollout.started_by) == (2, "olga")


def test_a_first_version_needs_no_plan(operator: Client) -> None:
    make_model(stable=None)

    assert "without a control to compare with" in text_of(operator, "/models/digits/promote/")
    operator.post("/models/digits/promote/", {"version": 1})

    assert Rollout.objects.get().kind == Rollout.Kind.FIRST


def test_a_second_rollout_is_refused_with_409_and_the_reason(operator: Client) -> None:
    make_baking(make_model())

    response = operator.post("/models/digits/promote/", {"version": 3, "plan": "canary"})

    assert response.status_code == 409
    assert "already has a live rollout to version 2" in rendered(response)


def test_another_signature_is_refused_with_the_difference(operator: Client) -> None:
    make_plan()
    make_version(make_model(), 4, signature=make_signature(32))

    response = operator.post("/models/digits/promote/", {"version": 4, "plan": "canary"})

    assert response.status_code == 400
    assert "differs from stable" in rendered(response)
    assert not Rollout.objects.exists()


@pytest.mark.parametrize("choice", [{"version": 99, "plan": "canary"}, {"version": 2}, {}])
def test_a_choice_that_does_not_exist_is_a_400_page(
    operator: Client, choice: dict[str, Any]
) -> None:
    make_plan()
    make_model()

    assert operator.post("/models/digits/promote/", choice).status_code == 400


def test_a_viewer_may_look_and_not_start(viewer: Client) -> None:
    make_plan()
    make_model()

    assert "needs the role operator" in text_of(viewer, "/models/digits/promote/")
    response = viewer.post("/models/digits/promote/", {"version": 2, "plan": "canary"})

    assert response.status_code == 403


# --- A rollout ----------------------------------------------------------------------------------


def test_the_list_filters(viewer: Client) -> None:
    make_baking(make_model("digits"))
    make_baking(make_model("fraud"))

    text = text_of(viewer, "/rollouts/?model=fraud&phase=baking")

    assert "/models/fraud/" in text
    assert "/models/digits/" not in text
    assert "No rollout matches the filter" in text_of(viewer, "/rollouts/?phase=failed")


def test_a_rollout_tells_whom_it_waits_for(viewer: Client) -> None:
    rollout = make_baking(make_model())
    make_instance("slow", applied_generation=0)

    text = text_of(viewer, address(rollout))

    assert "The bake clock has not started" in text
    assert "<b>slow</b> still serves generation 0" in text


def test_a_rollout_shows_checks_with_numbers_events_and_charts(viewer: Client) -> None:
    rollout = make_baking(make_model())
    send("digits", 2, variant="canary")
    judge(rollout, "error-rate", "no-data", "no exposures", canary_n=0, control_n=0)
    judge(
        rollout,
        "error-rate",
        "fail",
        "proven worse",
        canary_rate=0.031,
        canary_events=57,
        canary_n=1842,
        control_rate=0.009,
        control_events=9,
        control_n=1000,
    )

    text = text_of(viewer, address(rollout))

    assert "3.10 %" in text
    assert "57 of 1,842" in text
    assert 'id="evidence-data"' in text
    assert text.index("proven worse") < text.index("no exposures")


def test_the_live_fragment_is_guarded_by_its_stamp(viewer: Client) -> None:
    rollout = make_baking(make_model())
    stamp = stamp_in(text_of(viewer, address(rollout)))
    live = address(rollout, f"live/?stamp={stamp}")

    assert viewer.get(live, headers=HTMX).status_code == 204
    pause_rollout(rollout=rollout, actor=ANNA, now=database_now())
    fragment = rendered(viewer.get(live, headers=HTMX))

    assert "waiting for a person" in fragment
    assert 'id="timeline" hx-swap-oob="true"' in fragment


def test_a_rollout_that_ended_is_not_polled(viewer: Client) -> None:
    rollout = make_baking(make_model())
    Rollout.objects.update(phase=Phase.ROLLED_BACK, ended_at=database_now())

    assert f'hx-get="{address(rollout)}' not in text_of(viewer, address(rollout))


def test_the_decision_log_is_paged(viewer: Client) -> None:
    rollout = make_baking(make_model())
    for number in range(20):
        judge(rollout, "latency", "pass", f"answer number {number}.")

    assert "answer number 19." in text_of(viewer, address(rollout))
    second = text_of(viewer, address(rollout, "?page=2"))
    assert "answer number 0." in second
    assert "Page 2 of 2" in second


def test_a_rollouts_queries_do_not_grow_with_its_history(
    viewer: Client, django_assert_max_num_queries: Any
) -> None:
    rollout = make_baking(make_model())
    for _ in range(10):
        judge(rollout, "latency", "pass", "fine")

    with django_assert_max_num_queries(28):
        viewer.get(address(rollout))


@pytest.mark.parametrize(
    ("action", "phase"),
    [
        ("pause/", Phase.PAUSED),
        ("promote/", Phase.PROMOTING),
    ],
)
def test_an_operator_acts_on_the_state_that_was_seen(
    operator: Client, action: str, phase: Phase
) -> None:
    rollout = make_baking(make_model())

    act = operator.post if phase == Phase.PAUSED else partial(post_yes, operator)
    response = act(address(rollout, action), {"revision": rollout.revision}, headers=HTMX)

    rollout.refresh_from_db()
    assert (response.status_code, rollout.phase) == (200, phase)
    assert rollout.events.latest("id").actor == "olga"


def test_a_paused_rollout_is_resumed_without_javascript_too(operator: Client) -> None:
    rollout = make_baking(make_model())
    paused = pause_rollout(rollout=rollout, actor=ANNA, now=database_now())

    response = operator.post(
        address(rollout, "resume/"), {"revision": paused.revision}, follow=True
    )

    rollout.refresh_from_db()
    assert rollout.phase == Phase.BAKING
    assert "Resumed" in rendered(response)


def test_a_stale_revision_changes_nothing_and_shows_the_state(operator: Client) -> None:
    rollout = make_baking(make_model())
    revision = rollout.revision
    pause_rollout(rollout=rollout, actor=ANNA, now=database_now(), reason="odd graphs")

    response = operator.post(address(rollout, "promote/"), {"revision": revision}, headers=HTMX)

    text = rendered(response)
    assert response.status_code == 409
    assert "has changed in the meantime" in text
    assert "waiting for a person" in text


def test_an_action_without_a_revision_is_refused(operator: Client) -> None:
    rollout = make_baking(make_model())

    response = operator.post(address(rollout, "promote/"), headers=HTMX)

    rollout.refresh_from_db()
    assert (response.status_code, rollout.phase) == (400, Phase.BAKING)


def test_an_abort_needs_no_revision_and_asks_why_afterwards(operator: Client) -> None:
    rollout = make_baking(make_model())

    shown = post_yes(operator, address(rollout, "abort/"), {"revision": 0}, follow=True)

    rollout.refresh_from_db()
    assert rollout.phase == Phase.ROLLING_BACK
    assert 'id="why"' in rendered(shown)
    answer = operator.post(address(rollout, "reason/"), {"reason": "odd labels"}, follow=True)
    assert "odd labels" in text_of(operator, address(rollout))
    assert answer.status_code == 200


@pytest.mark.parametrize("action", ["pause/", "resume/", "abort/", "promote/"])
def test_a_viewer_may_not_act(viewer: Client, action: str) -> None:
    rollout = make_baking(make_model())

    assert 'id="abort"' not in text_of(viewer, address(rollout))
    assert viewer.post(address(rollout, action), {"revision": 0}).status_code == 403


def test_an_operator_of_one_model_may_not_act_on_another(client: Client) -> None:
    rollout = make_baking(make_model("digits"))
    other = RegisteredModel.objects.create(name="fraud")
    user = User.objects.create_user("otto")
    ModelRole.objects.create(user=user, model=other, role=Role.OPERATOR)
    client.force_login(user)

    assert client.post(address(rollout, "abort/"), {"revision": 0}).status_code == 403


def test_actions_are_post_only_and_guarded_against_forgery() -> None:
    rollout = make_baking(make_model())
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("root"))

    assert client.get(address(rollout, "abort/")).status_code == 405
    assert client.post(address(rollout, "abort/"), {"revision": 0}).status_code == 403


# --- The fleet ----------------------------------------------------------------------------------


def test_the_fleet_shows_instances_tables_and_refusals(viewer: Client) -> None:
    make_baking(make_model())
    make_instance("i-1", applied_generation=0, refused_generation=99, refusal="disk full")

    text = text_of(viewer, "/fleet/")

    assert "generation 99: disk full" in text
    assert "digits:2 at 5 %" in text
    assert viewer.get(f"/fleet/?stamp={stamp_in(text)}", headers=HTMX).status_code == 204


def test_an_empty_fleet_says_what_an_instance_needs(viewer: Client) -> None:
    assert "needs an instance token" in text_of(viewer, "/fleet/")
