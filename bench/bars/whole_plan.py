"""Simulates whole rollouts by a plan: intervals of both arms, and a decision after each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from apps.rollouts.analysis import StepInputs, judge_checks
from apps.rollouts.decisions import Action, Decision, JudgedCheck, StepClock, StepFacts, decide_step
from apps.rollouts.evidence import Arm, Interval, LatencyReference
from apps.rollouts.plans import WHOLE_BP, PlanDocument
from bench.bars import Rng
from contract import histogram

Array = NDArray[np.float64]

START = datetime(2026, 1, 5, 6, tzinfo=UTC)
# Latency is lognormal with a median of 20 ms; these buckets cover its relevant range.
MEDIAN_US, SIGMA = 20_000.0, 0.5
BUCKETS = np.arange(90, 160, 2)


@dataclass(frozen=True)
class World:
    """An arm's error rate and latency factor at `hours` after the start in step `step`.

    Both functions take hours (an array), the step's index and whether the arm is the canary.
    """

    error_rate: Callable[[Array, int, bool], Array]
    slowness: Callable[[Array, int, bool], Array]


def follow_plan(rng: Rng, plan: PlanDocument, world: World, *, per_second: float) -> Decision:
    """Return the first decision that ends a rollout by `plan`, else the last advance."""
    intervals: list[Interval] = []
    reference = _reference(world)
    clock = 0.0
    for index, step in enumerate(plan.steps):
        interval_s = plan.interval_of(index)
        times = clock + np.arange(0.0, step.bake_s, interval_s)
        share = step.weight_bp / WHOLE_BP
        sides = [
            _arms(rng, world, times, index, rate * interval_s, is_canary)
            for rate, is_canary in ((share * per_second, True), ((1 - share) * per_second, False))
        ]
        at = [START + timedelta(seconds=float(t)) for t in times]
        intervals += [Interval(index, *row) for row in zip(at, *sides, strict=True)]
        clock += step.bake_s
        decision = _decide(plan, index, intervals, reference)
        if decision.action is not Action.ADVANCE:
            return decision
    return decision


def _reference(world: World) -> LatencyReference:
    shares = _latency_shares(world.slowness(np.zeros(1), 0, False))[0]
    counts = {int(i): round(1e6 * p) for i, p in zip(BUCKETS, shares, strict=True)}
    p50, p95, p99 = (histogram.quantile_index(counts, q) or 0 for q in (0.5, 0.95, 0.99))
    return LatencyReference(p95=p95, p99=p99, n=5_000, frozen_at=START, p50=p50)


def _latency_shares(slowness: Array) -> Array:
    bounds = np.array([histogram.upper_bound_us(int(i)) for i in BUCKETS[:-1]])
    below = ndtr(np.log(bounds / (MEDIAN_US * slowness[:, None])) / SIGMA)
    edges = np.concatenate([np.zeros_like(below[:, :1]), below, np.ones_like(below[:, :1])], axis=1)
    shares: Array = np.diff(edges, axis=1)
    return shares


def _arms(
    rng: Rng, world: World, times: Array, step: int, expected: float, is_canary: bool
) -> list[Arm]:
    hours = times / 3_600
    n = rng.poisson(expected, times.size)
    errors = rng.binomial(n, world.error_rate(hours, step, is_canary))
    latency = rng.multinomial(n - errors, _latency_shares(world.slowness(hours, step, is_canary)))
    keys = [int(index) for index in BUCKETS]
    return [
        Arm(int(a), int(b), int(a), {k: v for k, v in zip(keys, row, strict=True) if v}, int(a))
        for a, b, row in zip(n, errors, latency.tolist(), strict=True)
    ]


def _decide(
    plan: PlanDocument, index: int, intervals: list[Interval], reference: LatencyReference
) -> Decision:
    question = StepInputs(plan, index, intervals, reference, reference.n)
    checks = plan.steps[index].check_documents
    answers = [
        JudgedCheck(c, result) for c, result in zip(checks, judge_checks(question), strict=True)
    ]
    now = START + timedelta(days=1)
    requests = sum(i.canary.requests for i in question.this_step)
    clock = StepClock(due_at=now, limit_at=now + timedelta(hours=1))
    return decide_step(answers, StepFacts(clock, now, requests, plan.steps[index].requests_min))
