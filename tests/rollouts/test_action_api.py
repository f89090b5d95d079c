"""What a person does to a rollout over the API: skip, approve, retry, override, go back, look."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.models.models import AuditEntry, RegisteredModel
from apps.rollouts.models import Evaluation, Quarantine, Rollout
from apps.rollouts.phases import enter_step
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.services import abort_rollout, promote_now
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.callers import caller, send_json
from tests.rollouts.factories import ANNA, make_baking, make_instance, make_model, make_plan, send

pytestmark = pytest.mark.django_db

ROLLOUTS = "/api/v1/rollouts/"


def act(client: Any, rollout: Rollout, verb: str, **body: Any) -> Any:
    return send_json(client, f"{ROLLOUTS}{rollout.pk}/{verb}/", body)


def make_gated(role: str) -> Rollout:
    gated = StepDocument(weight_bp=500, gate="person", gate_role=role)
    steps = (gated, StepDocument(weight_bp=1_000), StepDocument(weight_bp=10_000))
    save_plan(document=PlanDocument(name="gated", steps=steps), is_default=True, actor=ANNA)
    return make_baking(make_model())


def test_a_step_is_skipped_with_its_reason() -> None:
    rollout = make_baking(make_model())

    result = act(caller(), rollout, "skip", reason="seen enough").json()

    assert (result["step_index"], result["weight_bp"], result["reason"]) == (
        1,
        2_500,
        "seen enough",
    )


def test_a_stale_skip_is_refused() -> None:
    rollout = make_baking(make_model())
    bob = caller()
    body = {"revision": rollout.revision}

    answers = [act(bob, rollout, "skip", **body).status_code for _ in range(2)]

    assert answers == [200, 409]


@pytest.mark.parametrize(
    ("gate", "role", "status"),
    [("operator", "operator", 200), ("admin", "operator", 403), ("admin", "admin", 200)],
)
def test_a_gate_is_opened_by_the_role_that_it_names(gate: str, role: str, status: int) -> None:
    rollout = make_gated(gate)

    answer = act(caller(role), rollout, "approve")

    assert answer.status_code == status
    rollout.refresh_from_db()
    assert (rollout.approved_step == 0) is (status == 200)


def test_an_approval_is_of_the_step_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = make_gated("operator")
    bob, revision = caller(), rollout.revision
    enter_step(rollout, 1, "meanwhile", ANNA, database_now())

    assert act(bob, rollout, "approve", revision=revision).status_code == 409
    assert act(bob, rollout, "approve", revision=rollout.revision + 1).status_code == 409


def test_what_failed_is_retried_and_says_what_it_retries() -> None:
    rollout = make_baking(make_model())
    bob = caller()
    assert act(bob, rollout, "retry").status_code == 409
    abort_rollout(rollout=rollout, actor=ANNA, now=database_now())
    Rollout.objects.update(phase="rolled_back")

    held = act(bob, rollout, "retry")
    again = act(bob, rollout, "retry", overrides=["quarantine"])

    assert (held.status_code, held.json()["error"]["detail"]["override"]) == (409, "quarantine")
    assert (again.status_code, again.json()["retry_of"]) == (201, str(rollout.pk))
    assert again.json()["overrides"] == ["quarantine"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"overrides": ["everything"]}, "expected one of quarantine, signature, freeze"),
        ({"overrides": "quarantine"}, "overrides"),
        ({"override": ["quarantine"]}, "override"),
    ],
)
def test_an_override_that_is_none_is_named(body: dict[str, Any], message: str) -> None:
    make_model()
    make_plan()

    answer = send_json(caller(), ROLLOUTS, {"model": "digits", "version": "2", **body})

    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert not Rollout.objects.exists()


def promoted_twice() -> RegisteredModel:
    model = make_model()
    for number in (2, 3):
        promote_now(rollout=make_baking(model, number), actor=ANNA, now=database_now())
        Rollout.objects.update(phase="succeeded")
        model.refresh_from_db()
    return model


@pytest.mark.parametrize(("version", "target"), [(None, 2), ("1", 1), ("2", 2)])
def test_a_rollback_goes_to_the_version_that_is_named(version: str | None, target: int) -> None:
    promoted_twice()

    answer = send_json(caller(), "/api/v1/rollbacks/digits/start/", {"version": version})

    assert (answer.status_code, answer.json()["target"]) == (201, target)


@pytest.mark.parametrize(("version", "status"), [("3", 400), ("9", 404), ("nobody", 404)])
def test_a_rollback_to_what_was_never_stable_is_refused(version: str, status: int) -> None:
    promoted_twice()

    answer = send_json(caller(), "/api/v1/rollbacks/digits/start/", {"version": version})

    assert answer.status_code == status
    assert not Quarantine.objects.exists()


def test_going_back_to_what_was_rolled_back_needs_an_override() -> None:
    model = promoted_twice()
    version = model.versions.get(number=1)
    Quarantine.objects.create(version=version, reason="3 % errors", at=database_now())
    bob, path = caller(), "/api/v1/rollbacks/digits/start/"

    held = send_json(bob, path, {"version": "1"})
    done = send_json(bob, path, {"version": "1", "overrides": ["quarantine"]})

    assert (held.status_code, held.json()["error"]["detail"]["override"]) == (409, "quarantine")
    assert (done.status_code, done.json()["overrides"]) == (201, ["quarantine"])


def judged() -> Rollout:
    """Return a rollout whose first step was looked at once."""
    make_instance()
    send("digits", 1, requests=6_000, latency={"100": 6_000})
    rollout = make_baking(make_model())
    tick_rollouts()
    Rollout.objects.update(next_check_at=database_now())
    tick_rollouts()
    return rollout


def test_the_decision_log_can_be_repeated_by_anyone() -> None:
    rollout, carl = judged(), caller(None)
    path = f"{ROLLOUTS}{rollout.pk}/evaluations/"

    log = carl.get(path).json()

    assert log["count"] == len(log["results"]) == 4
    for row in log["results"]:
        assert row["rule"]
        assert row["inputs"]["intervals"] >= 0
        again = carl.get(f"{path}{row['id']}/repeat/").json()
        assert (again["is_same"], again["verdict"]) == (True, row["verdict"])
    assert carl.get(f"{path}999999999/repeat/").status_code == 404


def test_an_answer_without_inputs_cannot_be_repeated() -> None:
    rollout = judged()
    Evaluation.objects.update(inputs={})
    evaluation = Evaluation.objects.first()
    assert evaluation is not None

    answer = caller().get(f"{ROLLOUTS}{rollout.pk}/evaluations/{evaluation.pk}/repeat/")

    assert answer.status_code == 409


def test_the_explanation_tells_the_story() -> None:
    result = caller().get(f"{ROLLOUTS}{judged().pk}/explain/").json()

    assert "anna started it" in result["story"][0]
    assert any("error-rate" in sentence for sentence in result["story"])


def test_instances_tell_who_is_live_and_for_whom_rollouts_wait() -> None:
    now = database_now()
    for name, ago_s, fields in (
        ("live", 0, {}),
        ("silent", 60, {}),
        ("stopped", 60, {"is_stopping": True}),
        ("gone", 1_000, {}),
    ):
        make_instance(name, reported_at=now - timedelta(seconds=ago_s), **fields)

    rows = caller(None).get("/api/v1/instances/").json()["results"]

    assert [row["name"] for row in rows if row["is_live"]] == ["live"]
    assert [row["name"] for row in rows if row["waited_until"]] == ["silent"]


def test_an_operator_forgets_an_instance_and_a_viewer_does_not() -> None:
    make_instance("gone", reported_at=database_now() - timedelta(minutes=5))
    path = "/api/v1/instances/gone/forget/"

    answers = [client.post(path).status_code for client in (caller(None), caller())]

    assert answers == [403, 204]
    assert AuditEntry.objects.get(action="instance.forgotten").actor == "bob"
