"""A canary that loses units is found, and units that come back accuse nobody."""

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
# Where each unit is followed, looks are this many intervals apart.
PER_LOOK = 18
EVEN = np.full(CLUSTERS, 1.0 / CLUSTERS)


def bars(rng: Rng, runs: int) -> Iterator[Bar]:
    """Losses within a step and a rollout; then what healthy rollouts of returning units pay."""
    lost = strangers(rng, runs, 100.0, SHARES[:1], lost=0.2)
    yield share("20 % lost at 100/s: within the 5 % step", lost, runs, 0.99, is_most=False)
    runs = runs // 2
    lost = strangers(rng, runs, 10.0, SHARES, lost=0.2)
    yield share("20 % lost at 10/s: within the rollout", lost, runs, 0.90, is_most=False)
    for rate in (100.0, 10.0):
        told = f"healthy, every unit once, {rate:g}/s: paused"
        yield share(told, strangers(rng, runs, rate, SHARES), runs, 0.005)
    crowds = (
        ("2,000 units, each in 10 % of intervals", Crowd(2_000, 0.1)),
        ("the same, over 4 workers", Crowd(2_000, 0.1, workers=4)),
        ("200 units, each in 30 % of intervals", Crowd(200, 0.3)),
        ("20 units, each in every second interval", Crowd(20, 0.5)),
        ("5,000 units, few of whom come all the time", Crowd(5_000, 0.05, skew=1.5)),
    )
    for name, crowd in crowds:
        yield share(f"healthy, {name}: paused", returning(rng, runs, crowd), runs, 0.005)
    lossy = returning(rng, runs, Crowd(20_000, 0.05), lost=0.2)
    name = "20 % lost of 20,000 units that come back: within the rollout"
    yield share(name, lossy, runs, 0.90, is_most=False)


def strangers(rng: Rng, runs: int, per_second: float, shares: list[float], lost: float = 0) -> int:
    """In how many rollouts the check failed, where every request is a unit of its own."""
    hit = np.zeros(runs, dtype=bool)
    for weight in shares:
        seen = [
            rng.poisson(per_second * INTERVAL_S * part, (runs, INTERVALS))
            for part in (weight * (1.0 - lost), 1.0 - weight)
        ]
        both = np.cumsum(rng.multinomial(seen[0] + seen[1], EVEN), axis=1).astype(np.float64)
        canary, control = (np.cumsum(n, axis=1).astype(np.float64) for n in seen)
        hit |= failed(canary, control, weight, both)
    return int(hit.sum())


def failed(canary: Array, control: Array, weight: float, units: Array) -> Flags:
    """In which runs (the first axis) the check failed at some look (the second one)."""
    spread = overdispersion_of(units, np.zeros(canary.shape))
    log_e = log_evidence(canary, control, weight, spread)
    total = canary + control
    off = abs(canary - total * weight) >= DEVIATION_MIN * total * min(weight, 1.0 - weight)
    enough = total * min(weight, 1.0 - weight) / spread >= 5.0
    result: Flags = ((log_e >= LOG_NEEDED) & off & enough).any(axis=1)
    return result


@dataclass(frozen=True)
class Crowd:
    """Units that come back: each is there in an interval with chance `often` on average.

    `skew` is the standard deviation of the logarithm of how often; each of `workers` counts a unit
    that it meets.
    """

    units: int
    often: float
    workers: int = 1
    skew: float = 0.0


def returning(rng: Rng, runs: int, crowd: Crowd, lost: float = 0.0) -> int:
    """In how many rollouts the check failed; a unit's place in the split is fixed for all steps."""
    return sum(_return_once(rng, crowd, lost) for _ in range(runs))


def _return_once(rng: Rng, crowd: Crowd, lost: float) -> bool:
    place, cluster = rng.random(crowd.units), rng.integers(0, CLUSTERS, crowd.units)
    often = crowd.often * rng.lognormal(-0.5 * crowd.skew**2, crowd.skew, crowd.units)
    often = np.minimum(often, 1.0)
    is_lost = rng.random(crowd.units) < lost
    for weight in SHARES:
        looks = INTERVALS // PER_LOOK
        visits = rng.binomial(PER_LOOK * crowd.workers, often[:, None], (crowd.units, looks))
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
