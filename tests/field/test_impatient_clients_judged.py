"""Clients time out after 300 ms and the canary never responds: windows are empty, it rolls back."""

from __future__ import annotations

from datetime import timedelta

import pytest

from apps.lib.clock import database_now
from apps.rollouts.models import Evaluation, Rollout
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import send
from tests.rollouts.test_reconcile import baking

pytestmark = pytest.mark.django_db
INTERVAL = timedelta(seconds=10)


def windows(rollout: Rollout, seconds: int, *, stable: int, canary: int) -> None:
    """Send one window per second of both versions; `stable` of 95, `canary` of 5 are unanswered."""
    rollout.refresh_from_db()
    start = database_now() - timedelta(seconds=15 + seconds)
    for second in range(seconds):
        at = start + timedelta(seconds=second + 1)
        for variant, version, n, missed in (
            ("stable", 1, 95, stable),
            ("canary", 2, 5, canary),
        ):
            answered = n - missed
            send(
                rollout.model.name,
                version,
                at=at,
                variant=variant,
                split=str(rollout.pk),
                generation=rollout.generation,
                interval_started_at=start + INTERVAL * (second // 10),
                assigned=n,
                unanswered=missed,
                requests=answered,
                units=answered,
                latency={"80": answered} if answered else {},
            )


def test_a_canary_that_never_responds_in_time_is_rolled_back() -> None:
    rollout = baking()
    windows(rollout, 20, stable=0, canary=5)
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.ROLLING_BACK
    assert "unanswered 100.0 % on the canary, 0.00 % on stable" in rollout.reason


def test_clients_that_are_impatient_with_both_versions_are_no_evidence() -> None:
    rollout = baking()
    windows(rollout, 60, stable=28, canary=2)
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.BAKING
    assert rollout.step_index == 0
    (row,) = Evaluation.objects.filter(rollout=rollout, check_name="unanswered")
    assert row.verdict == "insufficient-sample"


def test_a_canary_without_any_response_never_advances() -> None:
    rollout = baking()
    windows(rollout, 2, stable=0, canary=5)
    tick_rollouts()
    rollout.refresh_from_db()
    assert (rollout.phase, rollout.step_index) == (Phase.BAKING, 0)
