"""A controller wrote from a stale cache after a restart (argo-rollouts #4784 #4786).

Here every write is a compare-and-set on the revision: a stale write changes nothing.
"""

from __future__ import annotations

import pytest
from django.db import transaction

from apps.lib.clock import database_now
from apps.lib.errors import Conflict
from apps.rollouts.models import PublishedTable, Rollout, RolloutEvent
from apps.rollouts.phases import enter_step, roll_back, switch_stable
from apps.rollouts.services import pause_rollout
from tests.rollouts.factories import ANNA, make_baking, make_model

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("move", ["enter_step", "switch_stable", "roll_back"])
def test_a_stale_rollout_changes_nothing(move: str) -> None:
    with transaction.atomic():
        rollout = make_baking(make_model())
    stale = Rollout.objects.select_related("model", "target__model").get(pk=rollout.pk)
    pause_rollout(rollout=rollout, actor=ANNA, now=database_now())
    before = (RolloutEvent.objects.count(), PublishedTable.objects.count())
    now = database_now()
    moves = {
        "enter_step": lambda: enter_step(stale, 1, "on", ANNA, now),
        "switch_stable": lambda: switch_stable(stale, "done", ANNA, now, None),
        "roll_back": lambda: roll_back(stale, "back", ANNA, now),
    }
    with pytest.raises(Conflict, match="changed by another user or task"), transaction.atomic():
        moves[move]()
    assert (RolloutEvent.objects.count(), PublishedTable.objects.count()) == before
