"""Writes on rollouts: what each refuses, and what a refusal leaves untouched."""

from __future__ import annotations

from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.lib.errors import Conflict, Invalid
from apps.models.models import Alias, AuditEntry, LiveSplit, ModelVersion
from apps.models.services import acquire_split
from apps.rollouts import services
from apps.rollouts.models import Rollout
from apps.rollouts.plans import from_json
from apps.rollouts.states import Phase
from tests.rollouts.factories import ANNA, make_baking, make_model, make_plan, make_signature

pytestmark = pytest.mark.django_db


def start(target: ModelVersion) -> Rollout:
    now = database_now()
    return services.start_rollout(model=target.model, target=target, actor=ANNA, now=now)


def version(number: int, **changes: Any) -> ModelVersion:
    model = make_model()
    make_plan()
    model.versions.filter(number=number).update(**changes)
    return model.versions.get(number=number)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signature": make_signature(32)}, r"'pixels' was FP32 \[-1, 64\] and is FP32 \[-1, 32\]"),
        ({"signature": {**make_signature(), "outputs": []}}, "output 'label' is missing"),
        ({"batched": False}, "only one of them has a batch dimension"),
    ],
)
def test_a_target_that_takes_other_requests_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    target = version(2, **changes)
    with pytest.raises(Invalid, match=message):
        start(target)
    assert not Rollout.objects.exists()
    assert not LiveSplit.objects.exists()


def test_a_version_of_another_model_is_refused() -> None:
    make_plan()
    other = make_model("other").versions.get(number=2)
    with pytest.raises(Invalid, match="not a version of digits"):
        services.start_rollout(model=make_model(), target=other, actor=ANNA, now=database_now())


def test_a_live_experiment_keeps_a_rollout_out() -> None:
    target = version(2)
    owner = "00000000-0000-4000-8000-000000000001"
    acquire_split(
        model=target.model,
        kind=LiveSplit.Kind.EXPERIMENT,
        owner_id=owner,  # type: ignore[arg-type]
        versions=[target],
    )
    with pytest.raises(Conflict, match="already has a live experiment"):
        start(target)
    assert not Rollout.objects.exists()


def test_without_a_default_plan_one_must_be_named() -> None:
    target = make_model().versions.get(number=2)
    with pytest.raises(Invalid, match="name a plan"):
        start(target)


def test_a_rollout_keeps_the_plan_that_it_started_with() -> None:
    rollout = start(version(2))
    assert rollout.plan is not None
    rollout.plan.steps.all().delete()
    rollout.refresh_from_db()
    plan = from_json(rollout.plan_document)
    assert [step.weight_bp for step in plan.steps] == [500, 2_500, 10_000]


def test_resuming_bakes_the_step_anew_and_keeps_its_weight() -> None:
    rollout = make_baking(make_model())
    now = database_now()
    services.pause_rollout(rollout=rollout, actor=ANNA, now=now)
    row = services.resume_rollout(rollout=rollout, actor=ANNA, now=now)
    assert (row.phase, row.weight_bp, row.step_due_at) == (Phase.BAKING, 500, None)


def test_only_a_paused_rollout_can_be_resumed() -> None:
    rollout = make_baking(make_model())
    with pytest.raises(Conflict, match="only a paused rollout"):
        services.resume_rollout(rollout=rollout, actor=ANNA, now=database_now())


def test_a_rollout_that_only_prepares_cannot_be_promoted_by_hand() -> None:
    rollout = start(version(2))
    with pytest.raises(Conflict, match="only a baking or paused rollout"):
        services.promote_now(rollout=rollout, actor=ANNA, now=database_now())


def test_a_success_that_serves_no_more_cannot_be_aborted() -> None:
    rollout = make_baking(make_model())
    Rollout.objects.update(phase=Phase.SUCCEEDED)
    with pytest.raises(Conflict, match=r"already ended.* is not stable any more"):
        services.abort_rollout(rollout=rollout, actor=ANNA, now=database_now())


@pytest.mark.parametrize("phase", [Phase.ROLLED_BACK, Phase.FAILED])
def test_what_was_taken_back_already_stays_so(phase: Phase) -> None:
    rollout = make_baking(make_model())
    Rollout.objects.update(phase=phase)
    row = services.abort_rollout(rollout=rollout, actor=ANNA, now=database_now())
    assert (row.phase, row.revision) == (phase, rollout.revision)


def test_aborting_twice_is_harmless() -> None:
    rollout = make_baking(make_model())
    first = services.abort_rollout(rollout=rollout, actor=ANNA, now=database_now())
    again = services.abort_rollout(rollout=rollout, actor=ANNA, now=database_now())
    assert (again.phase, again.revision) == (Phase.ROLLING_BACK, first.revision)


def test_promotion_moves_champion_and_keeps_the_way_back() -> None:
    rollout = make_baking(make_model())
    services.promote_now(rollout=rollout, actor=ANNA, now=database_now())
    model = rollout.model
    model.refresh_from_db()
    assert model.stable == rollout.target
    assert model.previous_stable == rollout.baseline
    assert Alias.objects.get(model=model, name="champion").version == rollout.target
    assert AuditEntry.objects.latest("id").action == "rollout.promoted"


def test_a_model_without_a_previous_version_cannot_roll_back() -> None:
    with pytest.raises(Conflict, match="no previous stable version"):
        services.rollback_model(model=make_model(), actor=ANNA, now=database_now())
