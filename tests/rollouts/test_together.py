"""A release moves in step: forward only all at once, back all together."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.lib.errors import Conflict
from apps.models.models import RegisteredModel, Role
from apps.models.services import change_deployment
from apps.models.states import DeploymentState
from apps.rollouts.models import PublishedTable, Quarantine, Release, Rollout, RolloutPolicy
from apps.rollouts.phases import set_phase
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.releases import start_release
from apps.rollouts.services import (
    abort_rollout,
    pause_rollout,
    promote_now,
    resume_rollout,
    start_rollout,
)
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import ANNA, latest, make_instance, make_model, make_person

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


@pytest.fixture
def pair() -> tuple[Rollout, Rollout]:
    """Return the rollouts of a release of two models, both at their first step."""
    steps = tuple(StepDocument(weight_bp=w, bake_s=0, checks=()) for w in (500, 10_000))
    save_plan(document=PlanDocument(name="bare", steps=steps), is_default=True, actor=ANNA)
    make_instance()
    make_person("anna", Role.OPERATOR)
    models = [make_model("a"), make_model("b")]
    start(*models)
    tick_rollouts()
    tick_rollouts()
    first, second = (Rollout.objects.get(model=model) for model in models)
    return first, second


def start(*models: RegisteredModel) -> None:
    targets = {model: model.versions.get(number=2) for model in models}
    start_release(name="spring", targets=targets, actor=ANNA, now=database_now())


def turn(*rollouts: Rollout, only: Rollout | None = None) -> None:
    """Let checks be due for all, or for one only, and tick."""
    due = Rollout.objects.filter(next_check_at__isnull=False)
    (due if only is None else due.filter(pk=only.pk)).update(next_check_at=database_now())
    tick_rollouts()
    for each in rollouts:
        each.refresh_from_db()


def test_all_models_start_their_first_step_in_one_tick(pair: tuple[Rollout, Rollout]) -> None:
    assert [(each.phase, each.weight_bp) for each in pair] == [(Phase.BAKING, 500)] * 2


def test_a_model_that_may_go_on_waits_for_the_others(pair: tuple[Rollout, Rollout]) -> None:
    first, second = pair
    turn(*pair)
    turn(*pair, only=first)
    assert (first.weight_bp, second.weight_bp) == (500, 500)
    assert "waiting for the rest of the release: b:2" in first.reason
    turn(*pair, only=second)
    assert (first.weight_bp, second.weight_bp) == (10_000, 10_000)


def test_they_become_stable_together(pair: tuple[Rollout, Rollout]) -> None:
    phases = set()
    for _ in range(8):
        turn(*pair)
        table = latest()
        phases.add((table.models["a"].stable, table.models["b"].stable))
    assert phases == {("1", "1"), ("2", "2")}
    assert {each.phase for each in pair} == {Phase.SUCCEEDED}


def test_one_that_goes_back_takes_the_others_with_it(pair: tuple[Rollout, Rollout]) -> None:
    first, second = pair
    abort_rollout(rollout=second, actor=ANNA, now=database_now(), reason="wrong data")
    turn(*pair)
    assert {each.phase for each in pair} == {Phase.ROLLED_BACK}
    assert first.reason == "with b:2 of the same release: wrong data"
    assert [held.version for held in Quarantine.objects.all()] == [second.target]


def test_a_target_that_cannot_be_served_stops_the_release() -> None:
    steps = (StepDocument(weight_bp=500),)
    save_plan(document=PlanDocument(name="bare", steps=steps), is_default=True, actor=ANNA)
    models = [make_model("a"), make_model("b")]
    start(*models)
    turn()
    now = database_now()
    deployment = models[1].versions.get(number=2).deployments.get()
    for state in (DeploymentState.LOADING, DeploymentState.FAILED):
        change_deployment(deployment, state, "no memory", ANNA, now)
    for _ in range(4):
        turn()
    phases = {each.model.name: each.phase for each in Rollout.objects.all()}
    assert phases == {"a": Phase.ROLLED_BACK, "b": Phase.FAILED}


def test_a_person_acts_on_all_of_them(pair: tuple[Rollout, Rollout]) -> None:
    first, second = pair
    pause_rollout(rollout=first, actor=ANNA, now=database_now())
    second.refresh_from_db()
    assert second.phase == Phase.PAUSED
    resume_rollout(rollout=second, actor=ANNA, now=database_now())
    promote_now(rollout=first, actor=ANNA, now=database_now())
    second.refresh_from_db()
    assert second.phase == Phase.PROMOTING


def test_what_one_cannot_do_none_does(pair: tuple[Rollout, Rollout]) -> None:
    first, second = pair
    Rollout.objects.filter(pk=second.pk).update(phase=Phase.ROLLING_BACK)
    before = PublishedTable.objects.count()
    with pytest.raises(Conflict, match="b:2 of the same release is rolling_back"):
        promote_now(rollout=first, actor=ANNA, now=database_now())
    first.refresh_from_db()
    assert (first.phase, PublishedTable.objects.count()) == (Phase.BAKING, before)


def test_a_refused_model_starts_nothing_at_all() -> None:
    steps = (StepDocument(weight_bp=500),)
    save_plan(document=PlanDocument(name="bare", steps=steps), is_default=True, actor=ANNA)
    models = [make_model("a"), make_model("b")]
    start_rollout(
        model=models[1],
        target=models[1].versions.get(number=3),
        actor=ANNA,
        now=database_now(),
    )
    with pytest.raises(Conflict, match="b already has a live rollout"):
        start(*models)
    assert Rollout.objects.get().model == models[1]
    assert not Release.objects.exists()


def test_a_model_that_was_paused_meanwhile_is_not_taken_along(
    pair: tuple[Rollout, Rollout],
) -> None:
    first, second = pair
    turn(*pair)
    turn(*pair, only=first)
    now = database_now()
    set_phase(first, Phase.PAUSED, "sample-ratio: off", ANNA, now)
    turn(*pair, only=second)
    assert (first.phase, first.weight_bp, second.weight_bp) == (Phase.PAUSED, 500, 500)
    resume_rollout(rollout=first, actor=ANNA, now=now)
    turn(*pair, only=second)
    assert (first.weight_bp, second.weight_bp) == (500, 500)


def test_a_model_that_no_longer_passes_holds_the_others(pair: tuple[Rollout, Rollout]) -> None:
    first, second = pair
    turn(*pair)
    turn(*pair, only=first)
    Rollout.objects.filter(pk=first.pk).update(
        plan_document=asking(first, "error-rate"), step_limit_at=database_now() + HOUR
    )
    turn(*pair, only=first)
    turn(*pair, only=second)
    assert (first.weight_bp, second.weight_bp) == (500, 500)
    assert "waiting for the rest of the release: a:2" in second.reason


def asking(rollout: Rollout, check: str) -> dict[str, Any]:
    """Return the rollout's plan with a check in its first step."""
    first, *others = rollout.plan_document["steps"]
    return {**rollout.plan_document, "steps": [{**first, "checks": [check]}, *others]}


@pytest.mark.parametrize("places", [1, 2])
def test_a_release_takes_one_place_whatever_it_holds(places: int) -> None:
    steps = (StepDocument(weight_bp=500),)
    save_plan(document=PlanDocument(name="bare", steps=steps), is_default=True, actor=ANNA)
    RolloutPolicy.objects.create(concurrent_max=places)
    start(*(make_model(name) for name in ("a", "b", "c")))
    single = make_model("d")
    target = single.versions.get(number=2)
    start_rollout(model=single, target=target, actor=ANNA, now=database_now())
    turn()
    turn()
    phases = {each.model.name: each.phase for each in Rollout.objects.all()}
    last = Phase.PENDING if places == 1 else Phase.BAKING
    assert phases == {"a": Phase.BAKING, "b": Phase.BAKING, "c": Phase.BAKING, "d": last}
