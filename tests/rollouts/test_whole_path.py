"""From requests on instances to the decision, on a simulated clock: what delivery must not change.

Windows are made by the data plane's telemetry; see bench.path, and bench.bars.whole_path for how
often such rollouts are decided rightly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import msgspec
import numpy as np
import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apps.lib.actors import INTERLOCK
from apps.lib.clock import database_now
from apps.rollouts.plan_templates import TEMPLATES
from apps.rollouts.services import pause_rollout, resume_rollout
from apps.rollouts.states import Phase
from bench.path.database import simulate_clock
from bench.path.drive import DELIVERED_IN_S, Delivery, Path, in_order, is_rolled_back
from bench.path.traffic import Rng, Traffic, failing, steady
from contract.messages import Batch

pytestmark = pytest.mark.django_db

PLAN = msgspec.structs.replace(TEMPLATES[0].document, time_scale_permille=200)
LATE_MOST_S = 20.0
LATELY_S = 150.0

# Of an interval that was judged: the canary's units and errors, and stable's.
Judged = dict[datetime, tuple[int, int, int, int]]


@pytest.fixture(autouse=True)
def clock(db: None) -> None:
    simulate_clock()


@contextmanager
def fleet(
    errors: float = 0.01, delivery: Delivery = in_order, *, skew_s: float = 0.0
) -> Iterator[Path]:
    """A fleet of two in a rollout whose canary fails a share of its requests; then it never was."""
    with transaction.atomic():
        path = Path.make(np.random.default_rng(1), 2, delivery)
        path.fleet[1].skew_s = skew_s
        fate = failing(lambda requests: np.where(requests.is_canary, errors, 0.01))
        path.add("m", Traffic(steady(60.0), fate, instances=(0, 1)))
        path.publish()
        path.run(90.0)
        path.start("m", PLAN)
        yield path
        transaction.set_rollback(True)


def late(lag_s: float, *, repeat: float = 0.0, jitter_s: float = 0.0, only: str = "") -> Delivery:
    """Batches (of one instance) that are late, by chance later, and come twice by chance."""

    def deliver(rng: Rng, sent_s: float, batch: Batch) -> Sequence[float]:
        if only not in ("", batch.instance):
            return in_order(rng, sent_s, batch)
        # Chance of its own, so that the requests are the same as with any other delivery.
        chance = np.random.default_rng([batch.sequence, len(batch.windows)])
        at_s = sent_s + DELIVERED_IN_S + lag_s + chance.uniform(0.0, max(jitter_s, 1e-9))
        return (at_s, at_s + 3.0) if chance.random() < repeat else (at_s,)

    return deliver


def judged(path: Path) -> Judged:
    return {
        row.started_at: (
            row.canary["n"],
            row.canary["errors"],
            row.control["n"],
            row.control["errors"],
        )
        for row in path.rollouts["m"].intervals.all()
    }


def decided(errors: float, delivery: Delivery = in_order) -> str:
    with fleet(errors, delivery) as path:
        path.run(LATELY_S, until=is_rolled_back)
        return str(path.rollouts["m"].phase)


@pytest.mark.parametrize("errors", [0.01, 0.3])
@settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(repeat=st.floats(0.0, 0.5), lag_s=st.floats(0.0, LATE_MOST_S), by_chance=st.floats(0.0, 1.0))
def test_how_batches_come_changes_no_decision(
    errors: float, repeat: float, lag_s: float, by_chance: float
) -> None:
    badly = late(lag_s * (1.0 - by_chance), repeat=repeat, jitter_s=lag_s * by_chance)
    assert decided(errors, badly) == decided(errors)


@pytest.mark.parametrize(("lag_s", "only"), [(9.0, ""), (LATE_MOST_S, ""), (LATE_MOST_S, "i-1")])
def test_windows_that_come_late_are_judged_whole(lag_s: float, only: str) -> None:
    with fleet() as path:
        path.run(LATELY_S)
        in_time = judged(path)
    with fleet(delivery=late(lag_s, only=only)) as path:
        path.run(LATELY_S)
        evaluations = judged(path)
    assert len(evaluations) > len(in_time) - 4
    assert evaluations.items() <= in_time.items()


@pytest.mark.parametrize("skew_s", [-15.0, 4.0])
def test_an_instance_whose_clock_is_off_is_judged_whole(skew_s: float) -> None:
    with fleet(skew_s=skew_s) as path:
        path.run(LATELY_S)
        inner = list(judged(path).values())[2:]
    # 3 of the canary and 57 of stable a second, over both instances.
    assert min(stable for _, _, stable, _ in inner) > 0.8 * 570


def test_a_rollout_that_is_paused_and_resumed_is_judged_without_a_gap() -> None:
    with fleet() as path:
        rollout = path.rollouts["m"]
        path.run(60.0)
        pause_rollout(rollout=rollout, actor=INTERLOCK, now=database_now())
        path.run(60.0)
        assert rollout.phase == Phase.PAUSED
        resume_rollout(rollout=rollout, actor=INTERLOCK, now=database_now())
        path.run(60.0)
        evaluations = sorted(judged(path))
    assert rollout.phase == Phase.BAKING
    assert {(after - at).total_seconds() for at, after in itertools.pairwise(evaluations)} == {10.0}
    assert len(evaluations) >= 16


def test_an_instance_that_restarts_costs_the_seconds_that_it_was_away() -> None:
    with fleet() as path:
        path.at(130.0, lambda path: path.fleet[1].restart(3.0))
        path.run(LATELY_S)
        stable = [each[2] for each in judged(path).values()][2:]
    assert not is_rolled_back(path.rollouts["m"])
    assert sum(n < 0.9 * np.median(stable) for n in stable) <= 2
