"""H: returning users, and callers with correlated errors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import ndtr, ndtri

from apps.rollouts.check_outcomes import Measure
from apps.rollouts.checks import latency_measure
from apps.rollouts.comparison import Series
from apps.rollouts.dispersion import Clusters
from apps.rollouts.eprocess import Counts
from bench.bars import Bar, share
from bench.bars.looking import (
    AS_SHIPPED,
    INTERVALS,
    SHARES,
    Integers,
    clusters_of,
    draw,
    errors_of,
    requests_until,
    rollbacks,
    shares_of,
    steps_of,
)
from bench.decisions_rules import SIGMA, TAILS, Array, Rng
from contract.messages import CLUSTERS

ROLLED_BACK_MOST = 0.01
POWER_LEAST = 0.9
ACTIVE = 0.1
ALWAYS_FAIL = 0.01
CLUMP = 5
# One look per minute: more looks cost more and add little, as the users are the same.
LOOKS = range(3, len(SHARES) * INTERVALS + 1, 6)


def bars(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on users who always fail or are slow, on clustered callers, and on power."""
    for users in (2_000, 20_000):
        yield _same_users(rng, max(20, runs // (4 if users == 2_000 else 16)), users)
    yield _slow_users(rng, max(20, runs // 20), 1_000)
    yield _callers(rng, runs // 4)
    yield _power(rng, runs // 2)


def _same_users(rng: Rng, runs: int, users: int) -> Bar:
    shares = shares_of()
    counts, clusters = _returning(rng, runs, users, shares)
    make = errors_of(counts, steps_of(shares), clusters)
    rollback_times = rollbacks(make, runs, LOOKS, AS_SHIPPED, slices=1)
    name = f"{users:,} users, 1% always fail, each in 10% of intervals: rolled back"
    return share(name, int((rollback_times > 0).sum()), runs, ROLLED_BACK_MOST)


def _returning(rng: Rng, runs: int, users: int, shares: Array) -> tuple[Counts, Clusters]:
    """Draw users who visit a tenth of the intervals; a failing user fails at each visit."""
    tables = [_one_world(rng, users, shares) for _ in range(runs)]
    columns = [np.stack(column) for column in zip(*tables, strict=True)]
    counts = Counts(*(column.sum(axis=-1)[..., None] for column in columns))
    return counts, clusters_of(columns[2], columns[3])


def _one_world(rng: Rng, users: int, shares: Array) -> tuple[Array, Array, Array, Array]:
    """Draw units and errors of canary and control by cluster, `(intervals, clusters)`."""
    cluster, place = rng.integers(0, CLUSTERS, users), rng.random(users)
    fails = rng.random(users) < ALWAYS_FAIL
    tables = []
    for is_canary in (True, False):
        for selected in (np.ones(users, dtype=bool), fails):
            # The users of a cluster differ only in the step in which they move to the canary.
            members = np.stack(
                [
                    np.bincount(
                        cluster[selected & ((place < share) == is_canary)], minlength=CLUSTERS
                    )
                    for share in SHARES
                ]
            )
            tables.append(np.repeat(members, INTERVALS, axis=0))
    canary, canary_bad, control, control_bad = tables
    failed = [rng.binomial(bad, ACTIVE) for bad in (canary_bad, control_bad)]
    successes = [
        rng.binomial(units - bad, ACTIVE)
        for units, bad in ((canary, canary_bad), (control, control_bad))
    ]
    rows = (failed[0] + successes[0], failed[0], failed[1] + successes[1], failed[1])
    return tuple(row.astype(np.float64) for row in rows)  # type: ignore[return-value]


def _slow_users(rng: Rng, runs: int, users: int) -> Bar:
    """Half of the variance of log-latency is between users; 100 requests a second."""
    shares = shares_of()
    worlds = [_slow_world(rng, users, shares) for _ in range(runs)]
    steps = steps_of(shares)
    stacked = {
        q: [np.stack(column) for column in zip(*(world[q] for world in worlds), strict=True)]
        for q in TAILS
    }

    def make(mine: slice) -> list[Measure]:
        return [
            latency_measure(q, _latency_series(columns, mine, steps), AS_SHIPPED)
            for q, columns in stacked.items()
        ]

    rollback_times = rollbacks(make, runs, LOOKS, AS_SHIPPED, slices=1)
    name = f"{users:,} users with half of log-latency's variance: rolled back for latency"
    return share(name, int((rollback_times > 0).sum()), runs, ROLLED_BACK_MOST)


def _latency_series(columns: list[Array], mine: slice, steps: Integers) -> Series:
    counts = Counts(*(column[mine].sum(axis=-1)[..., None] for column in columns))
    return Series(counts, steps, clusters_of(columns[2][mine], columns[3][mine]))


def _slow_world(rng: Rng, users: int, shares: Array) -> dict[int, tuple[Array, ...]]:
    """Draw responses and slow responses of canary and control by cluster, for each quantile."""
    usual = SIGMA * np.sqrt(0.5) * rng.standard_normal(users)
    cluster, place = rng.integers(0, CLUSTERS, users), rng.random(users)
    requests = rng.poisson(1_000.0 / users, (shares.size, users))
    own = SIGMA * np.sqrt(0.5)
    is_canary = place < shares[:, None]
    world: dict[int, tuple[Array, ...]] = {}
    group = np.zeros((users, CLUSTERS))
    group[np.arange(users), cluster] = 1.0
    for q, tail in TAILS.items():
        bound = -SIGMA * ndtri(tail)
        slow = rng.binomial(requests, _normal_tail((bound - usual) / own))
        world[q] = tuple(
            np.where(arm, counted, 0) @ group
            for arm in (is_canary, ~is_canary)
            for counted in (requests, slow)
        )
    return world


def _normal_tail(z: Array) -> Array:
    result: Array = ndtr(-z)
    return result


def _callers(rng: Rng, runs: int) -> Bar:
    """Without a unit header, each failing call occurs five times from the same client."""
    shares = shares_of()
    shape = (runs, shares.size, CLUSTERS)
    rate = 0.002
    sides = []
    for part in (shares, 1.0 - shares):
        calls = rng.poisson(1_000.0 * part[:, None] / CLUSTERS, shape)
        failing = rng.binomial(calls, rate)
        sides.append((calls + (CLUMP - 1) * failing, CLUMP * failing))
    columns = [column.astype(np.float64) for side in sides for column in side]
    counts = Counts(*(column.sum(axis=-1)[..., None] for column in columns))
    make = errors_of(counts, steps_of(shares), clusters_of(columns[2], columns[3]))
    rollback_times = rollbacks(make, runs, LOOKS, AS_SHIPPED, slices=1)
    name = "five correlated errors per caller without a unit: rolled back"
    return share(name, int((rollback_times > 0).sum()), runs, ROLLED_BACK_MOST)


def _power(rng: Rng, runs: int) -> Bar:
    """Return the cost of clusters for independent users: requests without over those with."""
    shares = shares_of((0.05,), 100)
    counts = draw(rng, runs, shares, 100, (0.03, 0.01), slices=1)
    n, errors = counts.control_n[..., 0], counts.control_events[..., 0]
    even = np.full(CLUSTERS, 1.0 / CLUSTERS)
    exposures = rng.multinomial(n.astype(int), even).astype(np.float64)
    failed = rng.multinomial(errors.astype(int), even).astype(np.float64)
    grouped = clusters_of(np.maximum(exposures, failed), failed)
    looks = range(1, shares.size + 1)
    taken = [
        requests_until(
            counts,
            rollbacks(errors_of(counts, steps_of(shares), each), runs, looks, AS_SHIPPED, slices=1),
        )
        for each in (None, grouped)
    ]
    both = ~np.isnan(taken[0]) & ~np.isnan(taken[1])
    ratio = taken[0][both] / taken[1][both]
    error = float(ratio.std() / np.sqrt(max(1, both.sum())))
    name = "independent users: requests without clusters over those with"
    measured = float(taken[0][both].mean() / taken[1][both].mean())
    return Bar(name, measured, error, POWER_LEAST, is_most=False, is_share=False)
