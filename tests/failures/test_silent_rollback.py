"""The system rolled back and showed an empty reason (terraform-provider-aws #48997 #49020).

Here a rollback has a reason with numbers in its row, its event and its evidence.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from apps.lib.clock import database_now
from apps.rollouts.models import Rollout, RolloutEvent
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import make_baking, make_instance, make_model, send

pytestmark = pytest.mark.django_db


def test_a_rollback_has_a_reason_with_numbers() -> None:
    make_instance()
    rollout = make_baking(make_model())
    tick_rollouts()
    at = rollout.started_at - timedelta(seconds=40)
    of = {"split": str(rollout.pk), "generation": rollout.generation, "interval_started_at": at}
    for seconds in range(1, 10, 2):
        window = {"at": at + timedelta(seconds=seconds), **of}
        send("digits", 2, variant="canary", units=12, unit_errors=4, **window)
        send("digits", 1, units=200, unit_errors=2, **window)
    Rollout.objects.update(next_check_at=database_now())
    tick_rollouts()
    event = RolloutEvent.objects.latest("id")
    assert event.to_state == Phase.ROLLING_BACK
    assert "error-rate: error rate 33.3 % on the canary, 1.0 % on stable" in event.reason
    assert event.evidence["checks"]["error-rate"]["canary_events"] == 20
    tick_rollouts()
    rollout.refresh_from_db()
    assert (rollout.phase, rollout.reason) == (Phase.ROLLED_BACK, event.reason)
