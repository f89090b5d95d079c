"""Section M: a shadow's accuracy, from paired predictions of the same requests.

Stable is right in 96 %, the worse version in 94 %, and their errors are correlated (φ = 0.6), as is
usual for two versions of a model. The unpaired test is the rollout's own e-process on wrong labels
at 50:50, with the same level and margin. A unit is one request. For scores, both versions share the
error by the request's difficulty, and each has its own noise; the test gets the losses as the
product stores them, in steps of a hundredth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from apps.rollouts.eprocess import Counts
from apps.rollouts.paired import GRID, loss_evidence, pair_evidence
from bench.bars import Bar, Rng, share
from bench.decisions_rules import rolled_back

MARGIN = 0.01
ALPHA = 0.025
STABLE_ERRORS, WORSE_ERRORS, PHI = 0.04, 0.06, 0.6
# Units per look, and the maximum numbers of pairs and of units.
LOOK, PAIRS_MAX, UNITS_MAX = 50, 8_000, 40_000
RUNS_MAX = 1_000
NEEDED = math.log(1.0 / ALPHA)
PLACES = np.arange(-GRID, GRID + 1) / GRID

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def bars(rng: Rng, runs: int) -> Iterator[Bar]:
    runs = min(runs, RUNS_MAX)
    few = max(40, runs // 4)
    by_pairs = _paired(rng, runs, WORSE_ERRORS)
    unpaired = _unpaired(rng, few)
    ratio = by_pairs.mean() / unpaired.mean()
    spread = math.hypot(
        by_pairs.std() / by_pairs.mean() / math.sqrt(runs),
        unpaired.std() / unpaired.mean() / math.sqrt(few),
    )
    yield Bar(
        "2 points less accurate: units by pairs ÷ units by the unpaired test",
        float(ratio), float(ratio * spread), 1.0 / 3.0, is_share=False,
    )  # fmt: skip
    hits = int((by_pairs < PAIRS_MAX).sum())
    yield share("2 points less accurate, found within 8,000 pairs", hits, runs, 0.95, is_most=False)
    alarms = int((_paired(rng, runs, STABLE_ERRORS) < PAIRS_MAX).sum())
    yield share("equally accurate, an alarm within 8,000 pairs", alarms, runs, ALPHA)
    at_margin = _counts(rng, runs, STABLE_ERRORS + MARGIN)
    passed = pair_evidence(*at_margin, margin=MARGIN).mirror.max(axis=-1) >= NEEDED
    yield share("a point less accurate, passed at the level 2.5 %", int(passed.sum()), runs, ALPHA)
    yield from _by_score(rng, few)


def _by_score(rng: Rng, runs: int) -> Iterator[Bar]:
    worse = _score_alarms(rng, runs, 2 * MARGIN)
    name = "by score: 2 points further off, found within 8,000 pairs"
    yield share(name, worse, runs, 0.95, is_most=False)
    alike = _score_alarms(rng, runs, 0.0)
    yield share("by score: as far off, an alarm within 8,000 pairs", alike, runs, ALPHA)


def _score_alarms(rng: Rng, runs: int, surplus: float) -> int:
    """Return the number of runs in which a version with this additional mean error fails."""
    looks = PAIRS_MAX // LOOK
    alarms = 0
    for _ in range(runs):
        hard = rng.exponential(0.1, PAIRS_MAX)
        stable, shadow = (
            np.minimum(1.0, hard + rng.exponential(0.05 + extra, PAIRS_MAX))
            for extra in (0.0, surplus)
        )
        weights = _on_grid(shadow - stable).reshape(looks, LOOK, -1).sum(axis=1).cumsum(axis=0)
        evidence = loss_evidence(PLACES, weights, margin=MARGIN)
        is_beyond = weights @ PLACES > MARGIN * weights.sum(axis=-1)
        fails = (evidence.margin >= NEEDED) | ((evidence.zero >= NEEDED) & is_beyond)
        alarms += bool(fails.any())
    return alarms


def _on_grid(losses: Floats) -> Floats:
    """Return the weights of each loss on the grid, shape `(losses, places)`."""
    below = np.floor(losses * GRID).astype(np.int64)
    above = losses * GRID - below
    weights = np.zeros((len(losses), len(PLACES) + 1))
    rows = np.arange(len(losses))
    weights[rows, below + GRID] += 1.0 - above
    weights[rows, below + GRID + 1] += above
    return weights[:, :-1]


def _counts(rng: Rng, runs: int, errors: float) -> tuple[Ints, Ints, Ints]:
    """Return pairs, lost and won after each look, arrays `(runs, looks)`."""
    spread = math.sqrt(STABLE_ERRORS * (1 - STABLE_ERRORS) * errors * (1 - errors))
    both = STABLE_ERRORS * errors + PHI * spread
    lost, won = errors - both, STABLE_ERRORS - both
    looks = PAIRS_MAX // LOOK
    drawn = rng.multinomial(LOOK, (lost, won, 1.0 - lost - won), size=(runs, looks))
    up, down, _ = np.moveaxis(drawn.cumsum(axis=1), -1, 0)
    return np.broadcast_to(np.arange(1, looks + 1) * LOOK, up.shape), up, down


def _paired(rng: Rng, runs: int, errors: float) -> Floats:
    """Return the number of pairs until each run fails its version; `PAIRS_MAX` if never."""
    pairs, lost, won = _counts(rng, runs, errors)
    evidence = pair_evidence(pairs, lost, won, margin=MARGIN)
    is_beyond = (lost - won) > MARGIN * pairs
    fails = (evidence.margin >= NEEDED) | ((evidence.zero >= NEEDED) & is_beyond)
    return _first(fails, LOOK, PAIRS_MAX)


def _unpaired(rng: Rng, runs: int) -> Floats:
    """Return the number of units of both versions until the rollout's test fails the worse one."""
    looks = UNITS_MAX // (4 * LOOK)
    n = np.full((runs, looks), 2 * LOOK, np.float64)
    events = [rng.binomial(2 * LOOK, p, size=n.shape) for p in (WORSE_ERRORS, STABLE_ERRORS)]
    counts = Counts(n, events[0].astype(np.float64), n, events[1].astype(np.float64))
    return _first(rolled_back(counts, ALPHA), 4 * LOOK, UNITS_MAX)


def _first(fails: NDArray[np.bool_], per_look: int, most: int) -> Floats:
    first = np.where(fails.any(axis=-1), (fails.argmax(axis=-1) + 1) * per_look, most)
    result: Floats = first.astype(np.float64)
    return result
