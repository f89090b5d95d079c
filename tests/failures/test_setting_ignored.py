"""A traffic percentage was accepted and had no effect (kserve #4074).

Here the traffic of each instance is compared with its table; a difference raises an alarm.
"""

from __future__ import annotations

import pytest

from apps.lib.clock import database_now
from apps.rollouts.divergence import watch_traffic
from apps.rollouts.models import TrafficAlarm
from tests.rollouts.factories import make_baking, make_model, send

pytestmark = pytest.mark.django_db


def test_a_share_without_effect_raises_an_alarm() -> None:
    rollout = make_baking(make_model())
    # The interval started with that table.
    at = database_now()
    of = {"split": str(rollout.pk), "generation": rollout.generation, "at": at}
    send("digits", 1, units=2_000, requests=2_000, interval_started_at=at, **of)
    assert len(watch_traffic(database_now())) == 1
    reason = TrafficAlarm.objects.get().reason
    assert "traffic on instance i-1 does not match the split" in reason
    assert "the canary got 0 of 2,000 exposures, 100 expected" in reason
