"""Stable's usual latency: from recent answers if they are enough, else from all."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from apps.lib.clock import database_now
from apps.rollouts.evidence import LatencyReference
from apps.rollouts.latency_baseline import (
    KEEP_TELEMETRY,
    describe_reference,
    reference_from_json,
    reference_of,
    reference_to_json,
)
from apps.rollouts.models import Rollout
from apps.rollouts.plans import from_json
from contract.histogram import index_of
from tests.rollouts.factories import make_baking, make_model, send

pytestmark = pytest.mark.django_db


@pytest.fixture
def rollout() -> Rollout:
    return make_baking(make_model())


def answers(n: int, *, ago: timedelta = timedelta(seconds=1), **fields: Any) -> None:
    send("digits", 1, at=database_now() - ago, **{"requests": n, "latency": {"80": n}} | fields)


def look(rollout: Rollout, **plan: int) -> tuple[LatencyReference | None, int]:
    changes = {"latency_slack_us": 0, **plan}
    followed = msgspec.structs.replace(from_json(rollout.plan_document), **changes)
    return reference_of(rollout, followed, database_now())


def test_the_quantiles_are_frozen_once(rollout: Rollout) -> None:
    answers(100, latency={"80": 94, "100": 6})
    reference, n = look(rollout, reference_requests_min=100)
    assert reference is not None
    assert (reference.p50, reference.p95, reference.p99, reference.n, n) == (80, 100, 100, 100, 100)
    answers(900)
    rollout.refresh_from_db()
    assert look(rollout, reference_requests_min=100) == (reference, 100)


def test_the_slack_is_added_to_stables_quantiles(rollout: Rollout) -> None:
    answers(100)
    reference, _ = look(rollout, reference_requests_min=1, latency_slack_us=1_000)
    assert reference is not None
    assert reference.p95 == index_of(2.0**10 + 1_000)


def test_a_reference_goes_back_only_as_far_as_needed(rollout: Rollout) -> None:
    for hours in (1, 5, 20, 300):
        answers(3_000, ago=timedelta(hours=hours), latency={str(80 + hours): 3_000})
    reference, n = look(rollout)
    assert reference is not None
    assert (n, reference.p50, reference.p95) == (6_000, 81, 85)
    assert (
        describe_reference(reference)
        == "usual latency from 6,000 answers of stable in the 5 h before"
    )


def test_few_answers_are_enough_at_low_traffic(rollout: Rollout) -> None:
    for day in range(13):
        answers(3, ago=timedelta(days=day, minutes=50))
    reference, n = look(rollout)
    assert reference is not None
    assert (reference.n, n) == (39, 39)
    assert "39 answers of stable in the 12 days" in describe_reference(reference)


def test_fewer_than_thirty_are_not(rollout: Rollout) -> None:
    answers(29, ago=timedelta(hours=5))
    answers(500, ago=KEEP_TELEMETRY + timedelta(hours=1))
    assert look(rollout) == (None, 29)


def test_enough_answers_within_half_an_hour_are_waited_for(rollout: Rollout) -> None:
    answers(900, ago=timedelta(minutes=5))
    answers(4_000, ago=timedelta(days=2))
    assert look(rollout) == (None, 900)


def test_too_few_answers_within_half_an_hour_are_not_waited_for(rollout: Rollout) -> None:
    for minute in range(60):
        answers(162, ago=timedelta(minutes=minute, seconds=1))
    reference, n = look(rollout)
    assert reference is not None
    assert n == 60 * 162


def test_only_stables_answers_are_a_reference(rollout: Rollout) -> None:
    send("digits", 2, variant="canary", latency={"90": 6_000})
    send("digits", 1, variant="explicit", latency={"90": 6_000})
    assert look(rollout) == (None, 0)


def test_new_and_old_references_are_stored_and_read(rollout: Rollout) -> None:
    answers(100)
    reference, _ = look(rollout, reference_requests_min=1)
    stored = reference_to_json(reference)
    assert reference_from_json(stored) == reference
    old = reference_from_json({k: v for k, v in stored.items() if k not in {"since", "p50"}})
    assert old is not None
    assert describe_reference(old) == ""
