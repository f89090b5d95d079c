"""Committed rows that the server sees, as a worker would have written them."""

from __future__ import annotations

from django.db import transaction

from apps.lib.clock import database_now
from apps.rollouts.models import Rollout
from apps.rollouts.phases import enter_step, set_phase
from apps.rollouts.services import promote_now
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import ANNA, make_baking, make_instance, make_model


@transaction.atomic
def baking(name: str = "digits") -> Rollout:
    """Return a rollout from version 1 to 2 at its first step."""
    return make_baking(make_model(name))


@transaction.atomic
def pass_step(rollout: Rollout) -> None:
    enter_step(rollout, rollout.step_index + 1, "the step passed", ANNA, database_now())


@transaction.atomic
def pause(rollout: Rollout, reason: str) -> None:
    set_phase(rollout, Phase.PAUSED, reason, ANNA, database_now())


def promoted() -> Rollout:
    """Return a rollout to version 2 that has succeeded."""
    make_instance()
    rollout = baking()
    promote_now(rollout=rollout, actor=ANNA, now=database_now())
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.SUCCEEDED
    return rollout
