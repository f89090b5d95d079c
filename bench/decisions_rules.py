"""Simulated rollouts, and the decision rules: the product's, and simpler ones for comparison.

Every array has the shape (runs, looks). There is a look every 250 requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, rel_entr

from apps.rollouts import checks
from apps.rollouts.check_outcomes import Levels, Measure, rule
from apps.rollouts.checks import latency_measure
from apps.rollouts.comparison import Comparison, Series
from apps.rollouts.eprocess import Counts, columns_of
from apps.rollouts.thresholds import beyond_threshold

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Rng = np.random.Generator

PER_LOOK = 250
MARGIN = 0.01
STEPS = (0.05, 0.10, 0.25, 0.50, 0.95)
LOOKS_PER_STEP = 40
SIGMA = 0.5
CACHED_RUNS = 50
TAILS = {500: 0.5, 950: 0.05, 990: 0.01}


def draw(
    rng: Rng,
    *,
    runs: int,
    shares: Sequence[float] | Array,
    control: float | Array,
    canary: float | Array,
    per_look: int = PER_LOOK,
) -> Counts:
    """Draw counts of shape (runs, looks); `shares` and rates that are arrays have one per look."""
    share = np.asarray(shares, dtype=np.float64)
    canary_n = rng.binomial(per_look, share, (runs, share.size))
    control_n = per_look - canary_n
    return counted(
        canary_n, rng.binomial(canary_n, canary), control_n, rng.binomial(control_n, control)
    )


def counted(*columns: NDArray[np.int64]) -> Counts:
    return Counts(*(column.astype(np.float64) for column in columns))


def five_steps() -> Array:
    """Return the canary's share at each look of a whole rollout that ends with 95 %."""
    return np.repeat(np.array(STEPS), LOOKS_PER_STEP)


def equal_slice(rng: Rng, *, runs: int, looks: int, control: float, canary: float) -> Counts:
    """Draw 5 % of all requests on the canary and an equal 5 % on stable."""
    return draw(
        rng,
        runs=runs,
        shares=np.full(looks, 0.5),
        control=control,
        canary=canary,
        per_look=PER_LOOK // 10,
    )


def correlated_errors(rng: Rng, runs: int) -> tuple[Counts, Counts]:
    """Draw a healthy rollout in which a failing unit fails five times: by request, and by unit."""
    units = draw(rng, runs=runs, shares=five_steps(), control=0.002, canary=0.002)
    extra = 4.0
    requests = Counts(
        units.canary_n + extra * units.canary_events,
        units.canary_events * (1.0 + extra),
        units.control_n + extra * units.control_events,
        units.control_events * (1.0 + extra),
    )
    return requests, units


def incident(rng: Rng, runs: int) -> Counts:
    """Draw 1 % errors, and 10 % in both versions from the 50 % step on."""
    shares = five_steps()
    rate = np.where(shares >= 0.5, 0.10, 0.01)
    return draw(rng, runs=runs, shares=shares, control=rate, canary=rate)


def _parts(counts: Counts) -> Iterator[tuple[slice, Counts]]:
    """Yield batches of runs that fit the CPU cache, with an interval per look."""
    for first in range(0, counts.canary_n.shape[0], CACHED_RUNS):
        mine = slice(first, first + CACHED_RUNS)
        yield mine, Counts(*(column[mine, :, None] for column in columns_of(counts)))


def steps_of(shares: Array) -> NDArray[np.int64]:
    """Return the step of each look: the share changes with it."""
    return np.cumsum(np.diff(shares, prepend=shares[0]) != 0.0)


def rolled_back(counts: Counts, alpha: float, steps: NDArray[np.int64] | None = None) -> Flags:
    """Return the look at which the default rule rolls back each run: only that one is true."""
    hit = np.zeros(counts.canary_n.shape, dtype=bool)
    step = np.zeros(hit.shape[-1], dtype=np.int64) if steps is None else steps
    levels = checks.CheckSettings(alpha=alpha).levels()
    for mine, part in _parts(counts):
        measure = Measure("errors", Comparison.of(Series(part, step), margin=MARGIN), MARGIN)
        hit[mine] = first_rollbacks([measure], levels)
    return hit


def first_rollbacks(measures: Sequence[Measure], levels: Levels, every: int = 1) -> Flags:
    """Apply the product's rule at each `every`-th look; mark the first rollback of each run."""
    shape = measures[0].comparison.weights.shape
    hit = np.zeros((*shape[:-1], shape[-1] - 1), dtype=bool)
    for now in range(every, shape[-1], every):
        ruling = rule(measures, now, levels)
        fails = ruling.is_worse | ruling.is_regression_beyond
        hit[..., now - 1] = fails & ~hit.any(axis=-1)
        if hit.any(axis=-1).all():
            break
    return hit


def promoted(counts: Counts, alpha: float = 0.1) -> Flags:
    """Return the looks at which the canary is proven not worse by the margin."""
    safe = np.zeros(counts.canary_n.shape, dtype=bool)
    step = np.zeros(safe.shape[-1], dtype=np.int64)
    levels = checks.CheckSettings(alpha_promote=alpha, min_samples=0).levels()
    for mine, part in _parts(counts):
        measure = Measure("errors", Comparison.of(Series(part, step), margin=MARGIN), MARGIN)
        for now in range(1, safe.shape[-1] + 1):
            safe[mine, now - 1] = rule([measure], now, levels).is_safe
    return safe


def threshold_rule(counts: Counts, samples_min: int = 1) -> Flags:
    """Return the looks at which the step's error rates so far differ by more than the margin."""
    beyond = []
    for first in range(0, counts.canary_n.shape[-1], LOOKS_PER_STEP):
        step = looks_of(counts, slice(first, first + LOOKS_PER_STEP))
        beyond.append(beyond_threshold(step, margin=MARGIN, samples_min=samples_min))
    return np.concatenate(beyond, axis=-1)


def peeking_z(counts: Counts, alpha: float) -> Flags:
    """Apply a one-sided two-proportion z-test at each look, to counts pooled over all steps."""
    n1, a, n0, b = (np.cumsum(column, axis=-1) for column in columns_of(counts))
    canary, control = a / np.maximum(n1, 1.0), b / np.maximum(n0, 1.0)
    pooled = (a + b) / np.maximum(n1 + n0, 1.0)
    error = np.sqrt(pooled * (1.0 - pooled) * (1.0 / np.maximum(n1, 1) + 1.0 / np.maximum(n0, 1)))
    result: Flags = canary - control > -ndtri(alpha) * error
    return result


def pooled_z(counts: Counts, alpha: float) -> Flags:
    """Apply the same test at one look only, after the last step."""
    result = peeking_z(counts, alpha)
    result[:, :-1] = False
    return result


def requests_until(hit: Flags, counts: Counts) -> Array:
    """Return the canary requests until the first hit of each run; NaN without one."""
    requests = np.cumsum(counts.canary_n, axis=-1)
    first = np.take_along_axis(requests, hit.argmax(axis=-1)[:, None], axis=-1)[:, 0]
    return np.where(hit.any(axis=-1), first, np.nan)


def share_of_runs(hit: Flags) -> float:
    return float(hit.any(axis=-1).mean())


def looks_of(counts: Counts, which: slice) -> Counts:
    return Counts(*(column[:, which] for column in columns_of(counts)))


def information_bound(canary: Array, control: Array, share: float, alpha: float) -> float:
    """Return the mean canary requests that any test of level α needs if it knows both rates.

    Wald (1945): ln(1/α) over the information of one request. With the categories' rates p1 and p0,
    the canary's share w and p* = w·p1 + (1−w)·p0, the information is w·KL(p1‖p*) + (1−w)·KL(p0‖p*),
    the growth rate of the best bet.
    """
    both = share * canary + (1.0 - share) * control
    of_canary, of_control = (float(rel_entr(p, both).sum()) for p in (canary, control))
    return -math.log(alpha) / (of_canary + (1.0 - share) / share * of_control)


def error_bound(before: float, after: float, share: float, alpha: float = 0.05) -> float:
    """Return the information bound of an error rate that changes from `before` to `after`."""
    canary, control = (np.array([p, 1.0 - p]) for p in (after, before))
    return information_bound(canary, control, share, alpha)


Slower = Callable[[Rng, Array], Array]


def latency_rolled_back(
    rng: Rng, runs: int, slower: Slower, looks: int = 160
) -> tuple[Flags, Counts]:
    """Return the looks at which the joint e-value of latency rolls back, at α = 0.05 and 5 %.

    Latencies are lognormal with σ = 0.5; `slower` changes the canary's logarithms of latency over
    the median.
    """
    settings = checks.CheckSettings(alpha=0.05)
    canary_n = rng.binomial(PER_LOOK, 0.05, (runs, looks))
    latency = slower(rng, SIGMA * rng.standard_normal((runs, looks, int(canary_n.max()))))
    is_request = np.arange(latency.shape[-1]) < canary_n[..., None]
    control_n = PER_LOOK - canary_n
    series, control_over, last = {}, control_n, 1.0
    for permille, tail in TAILS.items():
        # Requests slower than p95 are a subset of those slower than p50.
        control_over, last = rng.binomial(control_over, tail / last), tail
        over = ((latency > -SIGMA * ndtri(tail)) & is_request).sum(axis=-1)
        series[permille] = counts = counted(canary_n, over, control_n, control_over)
    step = np.zeros(looks, dtype=np.int64)
    hit = np.zeros((runs, looks), dtype=bool)
    for first in range(0, runs, CACHED_RUNS):
        mine = slice(first, first + CACHED_RUNS)
        measures = [
            latency_measure(
                permille,
                Series(Counts(*(column[mine, :, None] for column in columns_of(each))), step),
                settings,
            )
            for permille, each in series.items()
        ]
        hit[mine] = first_rollbacks(measures, settings.levels())
    return hit, counts


def latency_bound(rng: Rng, slower: Slower) -> float:
    """Return the information bound of a test that observes control's quantile classes."""
    latency = slower(rng, SIGMA * rng.standard_normal(1_000_000))
    edges = [-SIGMA * float(ndtri(tail)) for tail in TAILS.values()]
    canary = np.bincount(np.digitize(latency, edges), minlength=4) / latency.size
    return information_bound(canary, np.array([0.5, 0.45, 0.04, 0.01]), 0.05, 0.05)


def as_before(_: Rng, log_latency: Array) -> Array:
    return log_latency


def twenty_percent_slower(_: Rng, log_latency: Array) -> Array:
    return log_latency + math.log(1.2)


def three_percent_ten_times_slower(rng: Rng, log_latency: Array) -> Array:
    slow = rng.random(log_latency.shape) < 0.03
    return log_latency + math.log(10.0) * slow
