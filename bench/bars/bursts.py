"""G: short bursts and drifting error rates must not cause a rollback; lasting faults must."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from apps.rollouts.checks import CheckSettings
from apps.rollouts.dispersion import History, Pace
from apps.rollouts.segments import SLICES
from bench.bars import Bar, share
from bench.bars.looking import (
    AS_SHIPPED,
    INTERVAL_S,
    ONE_OF_TWENTY,
    SLICE_S,
    draw,
    errors_of,
    mean_of,
    requests_until,
    rollbacks,
    shares_of,
    steps_of,
)
from bench.decisions_rules import Array, Rng

# Canary requests until the rollback of 1% → 3% at commit d20bccf, at a share of 5 %, a level of
# 1/200 (α = 0.01 over two guardrails) and a look every 250 requests, by its own
# bench/decisions_rules.py with 500 runs and seed 1.
REQUESTS_AT_D20BCCF = 560
LONGER_MOST = 1.3
# The figure at α = 0.05 was about 350.
REQUESTS_AT_ONE_OF_TWENTY = 350 * 1.1
# This gives 250 requests per look, as in both figures.
PER_SECOND = 25

USUAL = 0.001
LOST_EVERY_S = 6_000.0
BURST_S, BURST_EVERY_S = 0.2, 1_200.0
SPREAD = 0.7
# The autocorrelation of successive intervals: a bad period lasts about 90 seconds.
LASTING = 0.9
BEFORE = 720
# In intervals: one minute.
INCIDENT = 6
ROLLED_BACK_MOST = 0.02


def bars(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on bursts and drifting rates over two hours as shipped, and on lasting faults."""
    for per_second in (100, 1_000):
        yield _lost_time(rng, runs // 3, per_second, 1.0, LOST_EVERY_S, "one lost second")
        yield _lost_time(rng, runs // 8, per_second, BURST_S, BURST_EVERY_S, "200 ms")
    for lasting in (0.5, LASTING):
        yield _wandering(rng, runs // 4, lasting)
    bound = LONGER_MOST * REQUESTS_AT_D20BCCF
    yield _persistent(rng, runs // 2, AS_SHIPPED, "as shipped", bound)
    yield _persistent(rng, runs // 2, ONE_OF_TWENTY, "α = 0.05", REQUESTS_AT_ONE_OF_TWENTY)
    yield _persistent(
        rng, runs // 4, AS_SHIPPED, "after an incident of stable's, as shipped", bound,
        before=_incident(rng, runs // 4),
    )  # fmt: skip
    for age_s in (60, 7_000):
        yield _dead(rng, max(40, runs // 4), age_s)


def _lost_time(
    rng: Rng, runs: int, per_second: int, length_s: float, every_s: float, label: str
) -> Bar:
    shares = shares_of()
    rates = [USUAL + (1.0 - USUAL) * _lost(rng, runs, shares.size, length_s, every_s) for _ in "ab"]
    counts = draw(rng, runs, shares, per_second, (rates[0], rates[1]))
    make = errors_of(counts, steps_of(shares))
    rollback_times = rollbacks(make, runs, range(1, shares.size + 1, 4), AS_SHIPPED)
    name = f"{label} per replica each {every_s / 60:.0f} min, {per_second}/s: rolled back in 2 h"
    return share(name, int((rollback_times > 0).sum()), runs, ROLLED_BACK_MOST)


def _lost(rng: Rng, runs: int, intervals: int, length_s: float, every_s: float) -> Array:
    """Return the lost share of each slice of 2 s, `(runs, intervals, slices)`."""
    slices = intervals * SLICES
    lost = np.zeros((runs, slices + 1))
    count = rng.poisson(slices * SLICE_S / every_s, runs)
    run = np.repeat(np.arange(runs), count)
    start_s = rng.uniform(0.0, (slices - 1) * SLICE_S, run.size)
    first = (start_s // SLICE_S).astype(int)
    in_first = np.minimum(length_s, (first + 1) * SLICE_S - start_s)
    np.add.at(lost, (run, first), in_first / SLICE_S)
    np.add.at(lost, (run, first + 1), (length_s - in_first) / SLICE_S)
    return np.minimum(lost[:, :slices], 1.0).reshape(runs, intervals, SLICES)


def _wandering(rng: Rng, runs: int, lasting: float) -> Bar:
    """Both arms' rates drift independently around 1 %; stable has two hours of history."""
    shares = shares_of()
    canary = 0.01 * _wander(rng, runs, shares.size, lasting)
    control = 0.01 * _wander(rng, runs, BEFORE + shares.size, lasting)
    n = rng.poisson(100 * INTERVAL_S, (runs, BEFORE))
    errors = rng.binomial(n, np.minimum(control[:, :BEFORE], 1.0))
    before = History.usual(Pace(n.astype(np.float64), errors.astype(np.float64)))
    rates = [np.minimum(each, 1.0)[..., None] for each in (canary, control[:, BEFORE:])]
    counts = draw(rng, runs, shares, 100, (rates[0], rates[1]))
    make = errors_of(counts, steps_of(shares), before=before)
    rollback_times = rollbacks(make, runs, range(1, shares.size + 1, 4), AS_SHIPPED)
    name = f"AR(1) of {lasting} per 10 s, log-rates' sd {SPREAD} per arm: rolled back in 2 h"
    return share(name, int((rollback_times > 0).sum()), runs, ROLLED_BACK_MOST)


def _wander(rng: Rng, runs: int, intervals: int, lasting: float) -> Array:
    """Return exp of an AR(1) process with a standard deviation of SPREAD and mean 1."""
    state = rng.standard_normal(runs)
    path = np.empty((runs, intervals))
    for k in range(intervals):
        path[:, k] = state
        state = lasting * state + np.sqrt(1.0 - lasting**2) * rng.standard_normal(runs)
    result: Array = np.exp(SPREAD * path - 0.5 * SPREAD**2)
    return result


def _incident(rng: Rng, runs: int) -> History:
    """Return two hours of stable at 1 %, with one minute of 50 % at a random time."""
    rate = np.full((runs, BEFORE), 0.01)
    first = rng.integers(0, BEFORE - INCIDENT, runs)
    rate[np.arange(runs)[:, None], first[:, None] + np.arange(INCIDENT)] = 0.5
    n = rng.poisson(PER_SECOND * INTERVAL_S, rate.shape)
    errors = rng.binomial(n, rate)
    return History.usual(Pace(n.astype(np.float64), errors.astype(np.float64)))


def _persistent(
    rng: Rng,
    runs: int,
    settings: CheckSettings,
    name: str,
    bound: float,
    before: History | None = None,
) -> Bar:
    shares = shares_of((0.05,), 240)
    counts = draw(rng, runs, shares, PER_SECOND, (0.03, 0.01))
    make = errors_of(counts, steps_of(shares), before=before)
    rollback_times = rollbacks(make, runs, range(1, shares.size + 1), settings)
    return mean_of(
        f"1% → 3% at 5% and {PER_SECOND}/s, {name}: canary requests",
        requests_until(counts, rollback_times),
        bound,
    )


def _dead(rng: Rng, runs: int, age_s: int) -> Bar:
    """Every request of the canary fails for 30 s, from a random time in an interval."""
    shares = shares_of()
    slices = shares.size * SLICES
    starts = rng.integers(int(age_s / SLICE_S), int((age_s + INTERVAL_S) / SLICE_S), runs)
    dead_s = 30
    position = np.arange(slices) - starts[:, None]
    is_dead = (position >= 0) & (position < dead_s / SLICE_S)
    rate = np.where(is_dead, 1.0, USUAL).reshape(runs, shares.size, SLICES)
    counts = draw(rng, runs, shares, 100, (rate, USUAL))
    first, last = int(age_s / INTERVAL_S), int((age_s + 40) / INTERVAL_S) + 1
    rollback_times = rollbacks(
        errors_of(counts, steps_of(shares)), runs, range(first, last), AS_SHIPPED
    )
    # The first look with ten seconds of the fault.
    in_time = np.ceil((starts + SLICES) / SLICES)
    caught = int(((rollback_times > 0) & (rollback_times <= in_time)).sum())
    name = f"a canary that is dead for 30 s after {age_s} s: rolled back within 10 s of evidence"
    return share(name, caught, runs, 0.99, is_most=False)
