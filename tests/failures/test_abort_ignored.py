"""An abort after "promote full" did nothing (argo-rollouts #4461): ours wins from every state."""

from __future__ import annotations

import pytest

from apps.lib.clock import database_now
from apps.rollouts.services import abort_rollout, promote_now
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import ANNA, latest, make_baking, make_instance, make_model

pytestmark = pytest.mark.django_db


def test_an_abort_takes_back_even_a_promotion_that_is_under_way() -> None:
    rollout = make_baking(make_model())
    row = promote_now(rollout=rollout, actor=ANNA, now=database_now())
    assert latest().models["digits"].stable == "2"
    # No worker is alive, and no instance has acked anything: the table is made here and now.
    abort_rollout(rollout=row, actor=ANNA, now=database_now())
    route = latest().models["digits"]
    assert (route.stable, route.split) == ("1", None)


def test_what_was_aborted_stays_aborted() -> None:
    rollout = make_baking(make_model())
    make_instance()
    abort_rollout(rollout=rollout, actor=ANNA, now=database_now())
    for _ in range(3):
        tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.ROLLED_BACK
    assert latest().models["digits"].split is None
