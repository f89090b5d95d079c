"""An abort after "promote full" did nothing (argo-rollouts #4461). Here it works in any state."""

from __future__ import annotations

import pytest

from apps.lib.clock import database_now
from apps.rollouts.services import abort_rollout, promote_now
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import ANNA, latest, make_baking, make_instance, make_model

pytestmark = pytest.mark.django_db


def test_an_abort_reverts_a_promotion_in_progress() -> None:
    rollout = make_baking(make_model())
    row = promote_now(rollout=rollout, actor=ANNA, now=database_now())
    assert latest().models["digits"].stable == "2"
    # No worker runs and no instance has acknowledged: the abort itself publishes the table.
    abort_rollout(rollout=row, actor=ANNA, now=database_now())
    route = latest().models["digits"]
    assert (route.stable, route.split) == ("1", None)


def test_an_aborted_rollout_stays_aborted() -> None:
    rollout = make_baking(make_model())
    make_instance()
    abort_rollout(rollout=rollout, actor=ANNA, now=database_now())
    for _ in range(3):
        tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.ROLLED_BACK
    assert latest().models["digits"].split is None
