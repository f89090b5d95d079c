"""A candidate that moved starts one rollout by the model's plan; a refusal is recorded once."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from apps.lib.errors import Invalid
from apps.models.models import Alias, AuditEntry, RegisteredModel
from apps.rollouts.candidates import start_candidates
from apps.rollouts.models import Plan, Rollout
from apps.rollouts.serving_policies import change_settings
from apps.rollouts.tasks import start_candidates_task
from controlplane.settings import CELERY_BEAT_SCHEDULE
from tests.rollouts.callers import rendered
from tests.rollouts.factories import ANNA, database_now, make_model, make_plan

pytestmark = pytest.mark.django_db


@pytest.fixture
def model() -> RegisteredModel:
    """A model with a policy, whose version 1 is stable."""
    make_plan("careful")
    model = make_model()
    configure(model, "careful")
    return model


def configure(model: RegisteredModel, plan: str) -> None:
    change_settings(model=model, candidate_plan=plan, actor=ANNA, now=database_now())


def name(model: RegisteredModel, number: int) -> None:
    version = model.versions.get(number=number)
    Alias.objects.update_or_create(model=model, name="candidate", defaults={"version": version})


def recorded_events() -> list[tuple[str, dict[str, Any]]]:
    entries = AuditEntry.objects.filter(action__startswith="candidate.").order_by("id")
    return [(entry.action, entry.after) for entry in entries]


def test_a_move_starts_one_rollout_by_the_plan(model: RegisteredModel) -> None:
    name(model, 2)
    assert [start_candidates() for _ in range(3)] == [1, 0, 0]
    rollout = Rollout.objects.get()
    assert (rollout.target.number, rollout.plan and rollout.plan.name) == (2, "careful")
    assert rollout.started_by == "interlock"
    after = {"version": 2, "plan": "careful", "rollout": str(rollout.pk)}
    assert recorded_events() == [("candidate.started", after)]


def test_a_refusal_is_told_once_and_not_tried_again(model: RegisteredModel) -> None:
    name(model, 1)
    assert [start_candidates() for _ in range(3)] == [0, 0, 0]
    [(action, after)] = recorded_events()
    assert action == "candidate.refused"
    assert "is already the stable version" in after["reason"]


def test_a_move_during_a_rollout_is_refused(model: RegisteredModel) -> None:
    name(model, 2)
    start_candidates()
    name(model, 3)
    assert start_candidates() == 0
    assert "live rollout" in recorded_events()[-1][1]["reason"]
    assert Rollout.objects.count() == 1


def test_without_a_policy_a_move_starts_nothing_then_or_later() -> None:
    make_plan("careful")
    model = make_model()
    name(model, 2)
    assert start_candidates() == 0
    configure(model, "careful")
    assert start_candidates() == 0
    name(model, 3)
    assert start_candidates() == 1
    assert Rollout.objects.get().target.number == 3


def test_the_same_version_named_after_the_alias_was_away_is_a_move(model: RegisteredModel) -> None:
    name(model, 1)
    start_candidates()
    Alias.objects.all().delete()
    assert start_candidates() == 0
    name(model, 1)
    start_candidates()
    assert [action for action, _ in recorded_events()] == ["candidate.refused"] * 2


def test_a_plan_renamed_meanwhile_is_told(model: RegisteredModel) -> None:
    Plan.objects.update(name="bold")
    name(model, 2)
    assert start_candidates() == 0
    assert "no plan named 'careful' any more" in recorded_events()[0][1]["reason"]


def test_one_models_refusal_keeps_no_other_one_from_its_rollout(model: RegisteredModel) -> None:
    other = make_model("other")
    configure(other, "careful")
    name(model, 1)
    name(other, 2)
    assert start_candidates() == 1


def test_a_plan_that_is_not_there_cannot_be_set(model: RegisteredModel) -> None:
    with pytest.raises(Invalid, match="no plan named 'bold'"):
        configure(model, "bold")
    configure(model, "")
    model.refresh_from_db()
    assert model.candidate_plan == ""


def test_beat_looks_for_moves(model: RegisteredModel) -> None:
    name(model, 2)
    start_candidates_task()
    assert Rollout.objects.count() == 1
    assert "rollouts.start_candidates" in CELERY_BEAT_SCHEDULE


def test_the_settings_page_offers_the_plans(model: RegisteredModel, admin_client: Client) -> None:
    path = "/models/digits/settings/"
    text = rendered(admin_client.get(path))
    assert '<option value="careful" selected>careful</option>' in text
    form = admin_client.get(path).context["form"]
    values = {name: form[name].value() for name in form.fields}
    data = {name: value for name, value in values.items() if value not in (None, False)}
    data["cache"] = "off"
    assert admin_client.post(path, {**data, "candidate_plan": ""}).status_code == 302
    assert "do not start a rollout" in rendered(admin_client.get("/models/digits/"))
    refused = admin_client.post(path, {**data, "candidate_plan": "bold"})
    assert "no plan named" in rendered(refused)
