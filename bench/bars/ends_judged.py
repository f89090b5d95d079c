"""A: requests without an answer count as evidence against a version."""

from __future__ import annotations

from collections.abc import Iterator

from bench.bars import Bar, share
from bench.bars.looking import (
    AS_SHIPPED,
    INTERVAL_S,
    draw,
    errors_of,
    rollbacks,
    shares_of,
    steps_of,
)
from bench.decisions_rules import Rng

PER_SECOND = 100
WITHIN_S = 120.0
# The delay until the last windows have arrived and the reconciler evaluates the interval.
LOOK_LAG_S = 5.0
FALSE_MOST = 0.005


def bars(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on a canary that hangs or sheds, and on two versions that shed equally."""
    yield _caught(rng, runs, "hangs for 10% of 300-ms clients' requests", 0.10)
    yield _caught(rng, runs, "sheds 30%", 0.30)
    shares = shares_of()
    counts = draw(rng, runs // 2, shares, PER_SECOND, (0.30, 0.30))
    looks = range(1, shares.size + 1, 4)
    rollback_times = rollbacks(errors_of(counts, steps_of(shares)), runs // 2, looks, AS_SHIPPED)
    hits = int((rollback_times > 0).sum())
    yield share("both shed 30%, 100/s: rolled back in 2 h", hits, runs // 2, FALSE_MOST)


def _caught(rng: Rng, runs: int, name: str, unanswered: float) -> Bar:
    """The canary leaves a share of its requests unanswered from the first second on."""
    shares = shares_of((0.05,), 30)
    counts = draw(rng, runs, shares, PER_SECOND, (unanswered, 0.0))
    make = errors_of(counts, steps_of(shares))
    rollback_times = rollbacks(make, runs, range(1, shares.size + 1), AS_SHIPPED)
    after_s = rollback_times * INTERVAL_S + LOOK_LAG_S
    caught = int(((rollback_times > 0) & (after_s < WITHIN_S)).sum())
    return share(f"{name}, 5%, 100/s: rolled back in 2 min", caught, runs, 0.99, is_most=False)
