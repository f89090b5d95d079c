"""The rollout's state machine, for longer than `./run test` looks."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.rollouts.machine import RolloutMachine

pytestmark = pytest.mark.django_db


def test_no_long_order_of_events_breaks_a_promise() -> None:
    run_state_machine_as_test(
        RolloutMachine,
        settings=settings(
            max_examples=300,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
