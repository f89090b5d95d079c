"""One of eight replicas served an hours-old document and reported ready (flagd #2017).

Here an instance that serves an older table is named, and no step passes before it is current.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from apps.lib.clock import database_now
from apps.rollouts.fleet_status import unacked
from apps.rollouts.publication import latest_table
from apps.rollouts.selectors.fleet import STALE_AFTER, read_fleet
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import make_baking, make_instance, make_model

pytestmark = pytest.mark.django_db


def test_an_instance_with_an_old_table_is_named() -> None:
    rollout = make_baking(make_model())
    for number in range(7):
        make_instance(f"sound-{number}", applied_generation=rollout.generation)
    make_instance("old", applied_generation=0)
    now = database_now()
    assert [name for name, _ in unacked(rollout.generation or 0, now)] == ["old"]
    tick_rollouts()
    rollout.refresh_from_db()
    assert "instance old still serves generation 0" in rollout.reason
    table = latest_table()
    assert table is not None
    type(table).objects.update(published_at=now - STALE_AFTER - timedelta(seconds=1))
    assert [member.instance.name for member in read_fleet(now).stale] == ["old"]
