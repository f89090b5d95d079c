"""Daily cycles must not cause a rollback, since the plan compares over the same seconds."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from apps.rollouts.decisions import Action
from apps.rollouts.plan_templates import TEMPLATES
from bench.bars import Bar, Rng, share
from bench.bars.whole_plan import Array, World, follow_plan

# Longer intervals than the plan's, since each look reads all of them.
PLAN = msgspec.structs.replace(TEMPLATES[0].document.as_followed(), interval_s=60)
LAST = len(PLAN.steps) - 1
PER_SECOND = 100.0
# A run simulates a whole rollout, so that only one in eight of the requested runs is made.
A_RUN = 8


def bars(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on rollbacks by daily cycles, and on versions that break in the last step."""
    runs = max(40, runs // A_RUN)
    for name, world in (("latency ± 50 %", _latency_cycle), ("errors 0.1 to 3 %", _error_cycle)):
        back = _rolled_back(rng, runs, world)
        yield share(f"healthy, daily cycle of {name}: rolled back", back, runs, 0.005)
    for name, world in (("1 → 3 % errors", _errors_late), ("20 % slower", _slow_late)):
        back = _rolled_back(rng, runs, world)
        yield share(f"{name} in the last step only: caught", back, runs, 0.98, is_most=False)


def _rolled_back(rng: Rng, runs: int, world: object) -> int:
    assert callable(world)
    ends = [follow_plan(rng, PLAN, world(rng), per_second=PER_SECOND) for _ in range(runs)]
    return sum(end.action is Action.ROLL_BACK for end in ends)


def _cycle(hours: Array, phase: float) -> Array:
    """Return a daily wave between 0 and 1."""
    result: Array = 0.5 + 0.5 * np.sin(2 * np.pi * hours / 24 + phase)
    return result


def _latency_cycle(rng: Rng) -> World:
    phase = rng.uniform(0, 2 * np.pi)
    return World(
        lambda hours, step, is_canary: np.full(hours.shape, 0.01),
        lambda hours, step, is_canary: 0.5 + _cycle(hours, phase),
    )


def _error_cycle(rng: Rng) -> World:
    phase = rng.uniform(0, 2 * np.pi)
    return World(
        lambda hours, step, is_canary: 0.001 + 0.029 * _cycle(hours, phase),
        lambda hours, step, is_canary: np.ones(hours.shape),
    )


def _errors_late(rng: Rng) -> World:
    return World(
        lambda hours, step, is_canary: np.full(
            hours.shape, 0.03 if is_canary and step == LAST else 0.01
        ),
        lambda hours, step, is_canary: np.ones(hours.shape),
    )


def _slow_late(rng: Rng) -> World:
    return World(
        lambda hours, step, is_canary: np.full(hours.shape, 0.01),
        lambda hours, step, is_canary: np.full(
            hours.shape, 1.2 if is_canary and step == LAST else 1.0
        ),
    )
