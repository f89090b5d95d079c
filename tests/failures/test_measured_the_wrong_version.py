"""Analysis looked at stable's pods and promoted a bad version (argo-rollouts #1700).

What is judged names its version, its split and its table; what is of another is not counted.
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
def test_a_window_that_is_not_the_canarys_is_not_counted_for_it(wrong: dict[str, Any]) -> None:
    rollout = make_baking(make_model())
    at = rollout.started_at - timedelta(seconds=30)
    right = {"variant": "canary", "split": str(rollout.pk), "generation": rollout.generation}
    fields = {"at": at, "interval_started_at": at, "units": 7}
    send("digits", 2, **{**right, **fields, **wrong})
    found = closed_intervals(rollout, 10, database_now())
    assert sum(interval.canary.n for interval in found) == 0
