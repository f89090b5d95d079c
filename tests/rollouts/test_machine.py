"""The promises of a rollout hold in whatever order things happen; `./run fuzz` looks for longer."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.rollouts.machine import RolloutMachine

pytestmark = pytest.mark.django_db


def test_no_order_of_events_breaks_a_promise() -> None:
    run_state_machine_as_test(
        RolloutMachine,
        settings=settings(
            max_examples=12,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
