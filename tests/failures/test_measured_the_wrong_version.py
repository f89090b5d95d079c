"""Analysis looked at stable's pods and promoted a bad version (argo-rollouts #1700).

Here windows name their version, split and table; windows of others are not counted.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.rollouts.evidence import closed_intervals
from tests.rollouts.factories import make_baking, make_model, send

pytestmark = pytest.mark.django_db

WRONG = [{"variant": "stable"}, {"split": "another"}, {"generation": 0}, {"variant": "explicit"}]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_window_of_another_version_is_not_counted_for_the_canary(wrong: dict[str, Any]) -> None:
    rollout = make_baking(make_model())
    at = rollout.started_at - timedelta(seconds=30)
    right = {"variant": "canary", "split": str(rollout.pk), "generation": rollout.generation}
    fields = {"at": at, "interval_started_at": at, "units": 7}
    send("digits", 2, **{**right, **fields, **wrong})
    intervals = closed_intervals(rollout, 10, database_now())
    assert sum(interval.canary.n for interval in intervals) == 0
