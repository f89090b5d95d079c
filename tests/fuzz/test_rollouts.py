"""The guarantees of a rollout hold for any order of events: a few examples, or all."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.rollouts.machine import RolloutMachine

pytestmark = pytest.mark.django_db

EXAMPLES_TASTE, EXAMPLES_LONG = 12, 300


def test_no_order_of_events_breaks_a_promise(pytestconfig: pytest.Config) -> None:
    is_long = any("fuzz" in argument for argument in pytestconfig.args)
    run_state_machine_as_test(
        RolloutMachine,
        settings=settings(
            max_examples=EXAMPLES_LONG if is_long else EXAMPLES_TASTE,
            stateful_step_count=60 if is_long else 30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
