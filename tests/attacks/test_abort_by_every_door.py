"""Abort is never refused: by REST and CLI as on the page, at any revision, and from every phase.

An abort that arrives together with a promotion rolls back.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import connection, transaction

from apps.lib.clock import database_now
from apps.lib.errors import Conflict
from apps.models.models import AuditEntry
from apps.models.services import release_split
from apps.rollouts.models import Quarantine, Release, Rollout
from apps.rollouts.phases import enter_step
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.releases import abort_release, start_release
from apps.rollouts.services import abort_rollout, promote_now
from apps.rollouts.states import LIVE_PHASES, Phase
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.callers import caller, send_json
from tests.rollouts.factories import (
    ANNA,
    latest,
    make_baking,
    make_instance,
    make_model,
    make_person,
)

pytestmark = pytest.mark.django_db

ROLLOUTS = "/api/v1/rollouts/"


def promoted() -> Rollout:
    make_instance()
    rollout = make_baking(make_model())
    promote_now(rollout=rollout, actor=ANNA, now=database_now())
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.SUCCEEDED
    return rollout


@pytest.mark.parametrize("phase", sorted(LIVE_PHASES))
@pytest.mark.parametrize("revision", [0, 1, 99, None])
def test_by_rest_at_any_revision_from_every_live_phase(phase: str, revision: int | None) -> None:
    rollout = make_baking(make_model())
    Rollout.objects.update(phase=phase)
    answer = send_json(caller(), f"{ROLLOUTS}{rollout.pk}/abort/", {"revision": revision})
    assert (answer.status_code, answer.json()["phase"]) == (200, "rolling_back")


def test_by_rest_after_a_promotion_it_is_the_rollback() -> None:
    rollout = promoted()
    answer = send_json(caller(), f"{ROLLOUTS}{rollout.pk}/abort/", {"revision": 1}).json()
    assert (answer["kind"], answer["target"], answer["lacks_reason"]) == ("rollback", 1, True)
    assert latest().models["digits"].stable == "1"
    assert Quarantine.objects.get().version.number == 2


def test_a_second_abort_after_the_rollback_goes_no_further() -> None:
    rollout, bob = promoted(), caller()
    send_json(bob, f"{ROLLOUTS}{rollout.pk}/abort/", {})
    again = send_json(bob, f"{ROLLOUTS}{rollout.pk}/abort/", {})
    assert again.status_code == 409
    assert "is not stable any more" in again.json()["error"]["message"]
    assert latest().models["digits"].stable == "1"


def test_a_later_reason_is_in_the_log_and_the_quarantine() -> None:
    rollout, bob = make_baking(make_model()), caller()
    enter_step(rollout, 1, "the step passed", ANNA, database_now())
    path = f"{ROLLOUTS}{rollout.pk}/"
    assert send_json(bob, f"{path}abort/", {}).json()["lacks_reason"] is True
    assert send_json(bob, f"{path}reason/", {"reason": " "}).status_code == 400
    report = send_json(bob, f"{path}reason/", {"reason": "wrong labels"}).json()
    assert (report["lacks_reason"], report["reason"]) == (False, "aborted manually: wrong labels")
    assert "wrong labels" in Quarantine.objects.get().reason
    assert "bob gave the reason: wrong labels." in bob.get(f"{path}explain/").json()["story"][-2]
    assert AuditEntry.objects.latest("id").action == "rollout.reason_given"
    assert send_json(bob, f"{path}reason/", {"reason": "twice"}).status_code == 409


@pytest.fixture
def pair() -> tuple[Release, Rollout, Rollout]:
    """Return a release of two models, both at their first step."""
    steps = tuple(StepDocument(weight_bp=w, bake_s=0, checks=()) for w in (500, 10_000))
    plan = save_plan(document=PlanDocument(name="bare", steps=steps), is_default=True, actor=ANNA)
    make_instance()
    anna = make_person("anna")
    models = [make_model("a"), make_model("b")]
    targets = {model: model.versions.get(number=2) for model in models}
    now = database_now()
    release = start_release(name="spring", targets=targets, plan=plan, actor=anna, now=now)
    tick_rollouts()
    tick_rollouts()
    first, second = (Rollout.objects.get(model=model) for model in models)
    assert {first.phase, second.phase} == {Phase.BAKING}
    return release, first, second


def stables() -> dict[str, str | None]:
    return {name: route.stable for name, route in latest().models.items()}


@pytest.mark.parametrize("succeeded", [0, 1, 2])
@pytest.mark.parametrize("door", ["rollout", "release"])
def test_a_promoted_release_is_rolled_back_completely(
    pair: tuple[Release, Rollout, Rollout], succeeded: int, door: str
) -> None:
    release, first, second = pair
    promote_now(rollout=first, actor=ANNA, now=database_now())
    for each in (second, first)[:succeeded]:
        Rollout.objects.filter(pk=each.pk).update(phase=Phase.SUCCEEDED)
        release_split(owner_id=each.pk)
    assert stables() == {"a": "2", "b": "2"}

    if door == "rollout":
        abort_rollout(rollout=first, actor=ANNA, now=database_now())
    else:
        abort_release(release=release, actor=ANNA, now=database_now())

    assert stables() == {"a": "1", "b": "1"}


@pytest.mark.django_db(transaction=True)
def test_concurrent_promote_and_abort_end_at_the_previous_version() -> None:
    make_instance()
    for _ in range(5):
        with transaction.atomic():
            model = make_model(f"m{Rollout.objects.count()}")
            rollout = make_baking(model)
        both = threading.Barrier(2)
        _at_once(both, rollout)
        assert latest().models[str(model.name)].stable == "1"


def _at_once(both: threading.Barrier, rollout: Rollout) -> None:
    def act(action: Any) -> None:
        try:
            both.wait(10)
            action(rollout=rollout, actor=ANNA, now=database_now())
        except Conflict:
            pass
        finally:
            connection.close()

    threads = [threading.Thread(target=act, args=(each,)) for each in (promote_now, abort_rollout)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
