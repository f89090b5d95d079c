"""The way back: what an abort or an instant rollback leaves to go back to, and what it forbids."""

from __future__ import annotations

import pytest

from apps.lib.clock import database_now
from apps.lib.errors import Conflict
from apps.models.models import ModelVersion, RegisteredModel
from apps.rollouts.models import Quarantine, Rollout
from apps.rollouts.services import abort_rollout, promote_now, rollback_model, start_rollout
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import ANNA, latest, make_instance, make_model, make_plan

pytestmark = pytest.mark.django_db


@pytest.fixture
def model() -> RegisteredModel:
    """Return one whose version 2 is stable, after version 1."""
    make_plan()
    make_instance()
    model = make_model()
    promote(model, 2)
    tick_rollouts()
    return model


def version(model: RegisteredModel, number: int) -> ModelVersion:
    return model.versions.get(number=number)


def promote(model: RegisteredModel, number: int) -> Rollout:
    """Return a rollout that has just made a version stable; no instance acked it yet."""
    now, target = database_now(), version(model, number)
    rollout = start_rollout(model=model, target=target, actor=ANNA, now=now)
    tick_rollouts()
    tick_rollouts()
    return promote_now(rollout=rollout, actor=ANNA, now=now)


def go_back(model: RegisteredModel, to: int | None = None) -> Rollout:
    target = version(model, to) if to else None
    return rollback_model(model=model, actor=ANNA, now=database_now(), to=target)


def abort(rollout: Rollout) -> None:
    abort_rollout(rollout=rollout, actor=ANNA, now=database_now())


def served(model: RegisteredModel) -> tuple[str | None, int | None]:
    """Return the stable version of the table, and the number to go back to."""
    model.refresh_from_db()
    previous = model.previous_stable
    return latest().models[model.name].stable, previous.number if previous else None


def test_an_aborted_promotion_keeps_the_way_back_from_before_it(model: RegisteredModel) -> None:
    model.refresh_from_db()
    until = model.rollback_until
    promoted = promote(model, 3)
    assert served(model) == ("3", 2)
    abort(promoted)
    assert served(model) == ("2", 1)
    assert model.rollback_until == until


def test_an_aborted_rollback_leaves_all_as_it_was(model: RegisteredModel) -> None:
    abort(go_back(model))
    assert served(model) == ("2", 1)
    assert not Quarantine.objects.exists()


def test_a_first_version_has_no_way_back() -> None:
    make_instance()
    model = make_model(stable=None)
    target = version(model, 1)
    rollout = start_rollout(model=model, target=target, actor=ANNA, now=database_now())
    tick_rollouts()
    tick_rollouts()
    abort(rollout)
    assert served(model) == (None, None)


def test_what_was_rolled_back_is_no_version_to_go_back_to(model: RegisteredModel) -> None:
    go_back(model)
    tick_rollouts()
    with pytest.raises(Conflict, match="digits:2 is in quarantine"):
        go_back(model, to=2)
    rollback_model(
        model=model,
        actor=ANNA,
        now=database_now(),
        to=version(model, 2),
        overrides=["quarantine"],
    )
    assert served(model) == ("2", None)


def test_a_rollback_waits_for_no_instance_that_is_behind(model: RegisteredModel) -> None:
    make_instance("behind", applied_generation=0)
    now, target = database_now(), version(model, 3)
    rollout = start_rollout(model=model, target=target, actor=ANNA, now=now)
    tick_rollouts()
    tick_rollouts()
    abort(rollout)
    tick_rollouts()
    go_back(model)
    rollout.refresh_from_db()
    assert rollout.phase == Phase.ROLLED_BACK
    assert rollout.reason.startswith("aborted manually (not waited for: behind still serves")
    assert served(model)[0] == "1"


def test_a_new_rollout_may_start_while_the_last_one_is_taken_back(model: RegisteredModel) -> None:
    make_instance("behind", applied_generation=0)
    now, target = database_now(), version(model, 3)
    rollout = start_rollout(model=model, target=target, actor=ANNA, now=now)
    abort(rollout)
    again = start_rollout(model=model, target=target, actor=ANNA, now=now)
    assert again.phase == Phase.PENDING
