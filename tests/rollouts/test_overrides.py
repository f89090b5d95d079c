"""What keeps a rollout from starting, and what happens when a person overrides it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.lib.errors import Conflict, Forbidden, Invalid
from apps.models.models import ModelVersion, Role
from apps.rollouts.models import FreezeWindow, Quarantine, Rollout
from apps.rollouts.services import abort_rollout, promote_now, start_rollout
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import (
    ANNA,
    latest,
    make_baking,
    make_instance,
    make_model,
    make_person,
    make_plan,
    make_signature,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def target() -> ModelVersion:
    make_plan()
    make_instance()
    return make_model().versions.get(number=2)


def start(target: ModelVersion, *overrides: str) -> Rollout:
    now = database_now()
    return start_rollout(
        model=target.model, target=target, actor=ANNA, now=now, overrides=overrides
    )


def freeze(**changes: Any) -> None:
    now = database_now()
    hour = timedelta(hours=1)
    window = {"starts_at": now - hour, "ends_at": now + hour, "reason": "the fair"}
    FreezeWindow.objects.create(created_by="anna", created_at=now, **(window | changes))


def test_what_was_rolled_back_needs_an_override_and_is_free_after_a_success() -> None:
    rollout = make_baking(make_model())
    make_instance()
    abort_rollout(rollout=rollout, actor=ANNA, now=database_now(), reason="wrong labels")
    tick_rollouts()
    with pytest.raises(Conflict, match=r"digits:2 is in quarantine .* \(wrong labels\)"):
        start(rollout.target)
    again = start(rollout.target, "quarantine")
    assert again.overrides == ["quarantine"]
    assert "(overridden: quarantine)" in again.reason
    for _ in range(2):
        tick_rollouts()
    promote_now(rollout=again, actor=ANNA, now=database_now())
    assert not Quarantine.objects.exists()


def test_an_abort_before_any_traffic_leaves_no_quarantine(target: ModelVersion) -> None:
    abort_rollout(rollout=start(target), actor=ANNA, now=database_now())
    assert not Quarantine.objects.exists()


@pytest.mark.parametrize("is_global", [True, False])
def test_nothing_starts_in_a_freeze_unless_a_person_insists(
    target: ModelVersion, is_global: bool
) -> None:
    freeze(model=None if is_global else target.model)
    with pytest.raises(Conflict, match=r"digits is frozen until .*: the fair"):
        start(target)
    make_person("anna", Role.ADMIN if is_global else Role.OPERATOR)
    assert start(target, "freeze").overrides == ["freeze"]


def test_a_freeze_of_all_models_is_overridden_by_who_may_set_it(target: ModelVersion) -> None:
    make_person("anna", Role.OPERATOR)
    freeze()
    with pytest.raises(Forbidden, match="needs the role admin on all models"):
        start(target, "freeze")


def test_a_freeze_of_another_model_and_one_that_is_over_hold_nothing(target: ModelVersion) -> None:
    freeze(model=make_model("other"))
    now = database_now()
    freeze(starts_at=now - timedelta(hours=2), ends_at=now - timedelta(hours=1))
    assert start(target).phase == Phase.PENDING


def test_a_weekly_freeze_comes_back(target: ModelVersion) -> None:
    week = timedelta(weeks=3)
    now = database_now()
    hour = timedelta(hours=1)
    freeze(starts_at=now - week - hour, ends_at=now - week + hour, is_weekly=True)
    with pytest.raises(Conflict, match="is frozen until"):
        start(target)


def test_another_signature_is_switched_to_without_steps(target: ModelVersion) -> None:
    ModelVersion.objects.filter(pk=target.pk).update(signature=make_signature(32))
    target.refresh_from_db()
    with pytest.raises(Invalid, match="Override 'signature' to switch to it at once"):
        start(target)
    rollout = start(target, "signature")
    assert rollout.kind == Rollout.Kind.SWITCH
    for _ in range(3):
        tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.SUCCEEDED
    assert latest().models["digits"].stable == "2"


def test_what_was_not_needed_is_not_kept(target: ModelVersion) -> None:
    assert start(target, "quarantine", "signature").overrides == []


def test_an_unknown_override_is_refused_by_name(target: ModelVersion) -> None:
    with pytest.raises(
        Invalid, match=r"unknown override 'luck'; expected one of quarantine, signature"
    ):
        start(target, "luck")
    assert not Rollout.objects.exists()
