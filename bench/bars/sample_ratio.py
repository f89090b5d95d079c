"""The sample ratio check: lost units are detected, and returning units cause no false alarm."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.rollouts.plan_templates import TEMPLATES
from apps.rollouts.plans import WHOLE_BP
from apps.rollouts.sample_ratio import ALPHA, DEVIATION_MIN, log_evidence, overdispersion_of
from bench.bars import Bar, Rng, share
from contract.messages import CLUSTERS

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

SHARES = [step.weight_bp / WHOLE_BP for step in TEMPLATES[0].document.as_followed().steps]
STEP_S, INTERVAL_S = 1_800, 10
INTERVALS = STEP_S // INTERVAL_S
LOG_NEEDED = math.log(len(SHARES) / ALPHA)
# The number of intervals per look in the simulation of single units.
PER_LOOK = 18
EVEN = np.full(CLUSTERS, 1.0 / CLUSTERS)


def bars(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on lost units, and on false alarms in healthy rollouts with returning units."""
    lost = single_visits(rng, runs, 100.0, SHARES[:1], lost=0.2)
    yield share("20 % lost at 100/s: within the 5 % step", lost, runs, 0.99, is_most=False)
    runs = runs // 2
    lost = single_visits(rng, runs, 10.0, SHARES, lost=0.2)
    yield share("20 % lost at 10/s: within the rollout", lost, runs, 0.90, is_most=False)
    for rate in (100.0, 10.0):
        name = f"healthy, every unit once, {rate:g}/s: paused"
        yield share(name, single_visits(rng, runs, rate, SHARES), runs, 0.005)
    populations = (
        ("2,000 units, each in 10 % of intervals", Population(2_000, 0.1)),
        ("the same, over 4 workers", Population(2_000, 0.1, workers=4)),
        ("200 units, each in 30 % of intervals", Population(200, 0.3)),
        ("20 units, each in every second interval", Population(20, 0.5)),
        ("5,000 units, few of whom come all the time", Population(5_000, 0.05, skew=1.5)),
    )
    for name, population in populations:
        hits = returning(rng, runs, population)
        yield share(f"healthy, {name}: paused", hits, runs, 0.005)
    lossy = returning(rng, runs, Population(20_000, 0.05), lost=0.2)
    name = "20 % lost of 20,000 units that come back: within the rollout"
    yield share(name, lossy, runs, 0.90, is_most=False)


def single_visits(
    rng: Rng, runs: int, per_second: float, shares: list[float], lost: float = 0
) -> int:
    """Return the number of rollouts in which the check failed, with one request per unit."""
    hit = np.zeros(runs, dtype=bool)
    for weight in shares:
        requests = [
            rng.poisson(per_second * INTERVAL_S * part, (runs, INTERVALS))
            for part in (weight * (1.0 - lost), 1.0 - weight)
        ]
        both = np.cumsum(rng.multinomial(requests[0] + requests[1], EVEN), axis=1).astype(
            np.float64
        )
        canary, control = (np.cumsum(n, axis=1).astype(np.float64) for n in requests)
        hit |= failed(canary, control, weight, both)
    return int(hit.sum())


def failed(canary: Array, control: Array, weight: float, units: Array) -> Flags:
    """Return the runs (first axis) in which the check failed at any look (second axis)."""
    spread = overdispersion_of(units, np.zeros(canary.shape))
    log_e = log_evidence(canary, control, weight, spread)
    total = canary + control
    off = abs(canary - total * weight) >= DEVIATION_MIN * total * min(weight, 1.0 - weight)
    enough = total * min(weight, 1.0 - weight) / spread >= 5.0
    result: Flags = ((log_e >= LOG_NEEDED) & off & enough).any(axis=1)
    return result


@dataclass(frozen=True)
class Population:
    """Returning units: each visits an interval with probability `often` on average.

    `skew` is the standard deviation of the logarithm of that probability. Each of `workers` counts
    the units that it serves.
    """

    units: int
    often: float
    workers: int = 1
    skew: float = 0.0


def returning(rng: Rng, runs: int, population: Population, lost: float = 0.0) -> int:
    """Return the number of rollouts in which the check failed.

    The place of a unit in the split is the same in all steps.
    """
    return sum(_return_once(rng, population, lost) for _ in range(runs))


def _return_once(rng: Rng, population: Population, lost: float) -> bool:
    place, cluster = rng.random(population.units), rng.integers(0, CLUSTERS, population.units)
    often = population.often * rng.lognormal(
        -0.5 * population.skew**2, population.skew, population.units
    )
    often = np.minimum(often, 1.0)
    is_lost = rng.random(population.units) < lost
    for weight in SHARES:
        looks = INTERVALS // PER_LOOK
        visits = rng.binomial(
            PER_LOOK * population.workers, often[:, None], (population.units, looks)
        )
        visits = np.cumsum(visits, axis=1).astype(np.float64)
        in_canary = place < weight
        visits[in_canary & is_lost] = 0.0
        totals = np.zeros((CLUSTERS, looks))
        np.add.at(totals, cluster, visits)
        canary = visits[in_canary].sum(axis=0)
        control = visits[~in_canary].sum(axis=0)
        if failed(canary[None], control[None], weight, totals.T[None])[0]:
            return True
    return False
