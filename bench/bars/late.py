"""F: a version that breaks after three healthy steps, or whose latency grows steadily."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import ndtr, ndtri

from apps.rollouts.check_outcomes import Measure
from apps.rollouts.checks import CheckSettings, latency_measure
from apps.rollouts.comparison import Series
from apps.rollouts.eprocess import Counts
from bench.bars import Bar, share
from bench.bars.looking import (
    AS_SHIPPED,
    INTERVALS,
    ONE_OF_TWENTY,
    SHARES,
    draw,
    errors_of,
    mean_of,
    requests_until,
    rollbacks,
    shares_of,
    steps_of,
)
from bench.decisions_rules import SIGMA, TAILS, Array, Rng

REQUESTS_MOST = 3_000
LEAK_A_MINUTE = 0.01


def bars(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on breaks at 10/s and 100/s, healthy rollouts, and a latency leak."""
    for per_second in (10, 100):
        yield from _breaks(rng, runs // 4, per_second)
    for name, settings, bound in (
        ("α = 0.05", ONE_OF_TWENTY, 0.02),
        ("as shipped", AS_SHIPPED, 0.003),
    ):
        yield _healthy(rng, runs // 3, name, settings, bound)
    yield _leak(rng, max(20, runs // 8))


def _breaks(rng: Rng, runs: int, per_second: int) -> Iterator[Bar]:
    shares = shares_of()
    start = (len(SHARES) - 1) * INTERVALS
    is_broken = np.arange(shares.size) >= start
    canary = np.where(is_broken, 0.03, 0.01)[:, None]
    counts = draw(rng, runs, shares, per_second, (canary, 0.01))
    looks = range(start + 1, shares.size + 1)
    rollback_times = rollbacks(errors_of(counts, steps_of(shares)), runs, looks, AS_SHIPPED)
    name = f"1% → 3% in the 50% step after three healthy ones, {per_second}/s"
    yield mean_of(
        f"{name}: canary requests", requests_until(counts, rollback_times, start), REQUESTS_MOST
    )
    caught = int((rollback_times > 0).sum())
    yield share(f"{name}: rolled back in the step", caught, runs, 0.98, is_most=False)


def _healthy(rng: Rng, runs: int, name: str, settings: CheckSettings, bound: float) -> Bar:
    shares = shares_of()
    counts = draw(rng, runs, shares, 100, (0.01, 0.01))
    looks = range(1, shares.size + 1, 3)
    rollback_times = rollbacks(errors_of(counts, steps_of(shares)), runs, looks, settings)
    hits = int((rollback_times > 0).sum())
    return share(f"healthy, 1% errors, four steps at 100/s, {name}", hits, runs, bound)


def _leak(rng: Rng, runs: int) -> Bar:
    """Latency is lognormal with σ = 0.5 and grows by 1 % of its initial value per minute."""
    shares = shares_of()
    minutes = np.arange(shares.size) / 6.0
    slower = np.log1p(LEAK_A_MINUTE * minutes)
    tails = {q: ndtr(ndtri(tail) + slower / SIGMA) for q, tail in TAILS.items()}
    counts = {q: _nested(rng, runs, shares, tails, q) for q in TAILS}

    def make(mine: slice) -> list[Measure]:
        return [
            latency_measure(
                q, Series(Counts(*(column[mine] for column in each)), steps_of(shares)), AS_SHIPPED
            )
            for q, each in counts.items()
        ]

    rollback_times = rollbacks(make, runs, range(2, 600, 4), AS_SHIPPED, slices=1)
    caught = int(((rollback_times > 0) & (slower[rollback_times - 1] < np.log(2.0))).sum())
    name = "latency + 1% a minute, 100/s: caught before it doubles"
    return share(name, caught, runs, 0.99, is_most=False)


def _nested(
    rng: Rng, runs: int, shares: Array, tails: dict[int, Array], permille: int
) -> tuple[Array, ...]:
    drawn = draw(rng, runs, shares, 100, (tails[permille][:, None], TAILS[permille]), slices=1)
    return drawn.canary_n, drawn.canary_events, drawn.control_n, drawn.control_events
