"""How often the product decides wrongly, and how soon rightly: simulated with its own code.

Everything is seeded, so that two runs print the same. A rollout is looked at every 250 requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from apps.experiments.stats import sequential
from apps.rollouts import eprocess
from apps.rollouts.eprocess import Counts

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Rng = np.random.Generator

SEED = 20_260_000
PER_LOOK = 250
MARGIN = 0.01
STEPS = (0.05, 0.10, 0.25, 0.50, 0.95)
LOOKS_PER_STEP = 40


@dataclass(frozen=True)
class Row:
    table: str
    case: str
    figure: str


def draw(
    rng: Rng,
    *,
    runs: int,
    shares: Sequence[float] | Array,
    control: float | Array,
    canary: float | Array,
    per_look: int = PER_LOOK,
) -> Counts:
    """Counts of shape (runs, looks): `shares` and, if arrays, the rates have one entry per look."""
    share = np.asarray(shares, dtype=np.float64)
    canary_n = rng.binomial(per_look, share, (runs, share.size))
    control_n = per_look - canary_n
    canary_events = rng.binomial(canary_n, canary)
    control_events = rng.binomial(control_n, control)
    columns = (canary_n, canary_events, control_n, control_events)
    return Counts(*(column.astype(np.float64) for column in columns))


def five_steps() -> Array:
    """The canary's share at each look of a whole rollout that keeps a 5 % holdback at the end."""
    return np.repeat(np.array(STEPS), LOOKS_PER_STEP)


def rolled_back(counts: Counts, alpha: float) -> Flags:
    """After which looks the default rule has the evidence to roll back; shape (runs, looks)."""
    paths = eprocess.follow(counts, margin=MARGIN)
    zero = np.maximum.accumulate(paths.zero, axis=-1)
    needed = -math.log(alpha)
    result: Flags = (paths.margin >= needed) | ((zero >= needed) & paths.exceeds(MARGIN))
    return result


def promoted(counts: Counts, alpha: float = 0.1) -> Flags:
    """After which looks the canary is proven not worse by the margin."""
    result: Flags = eprocess.follow(counts, margin=MARGIN).mirror >= -math.log(alpha)
    return result


def threshold_rule(counts: Counts) -> Flags:
    """The rule of thumb: the step's error rates so far differ by more than the margin."""
    beyond = []
    for first in range(0, counts.canary_n.shape[-1], LOOKS_PER_STEP):
        step = slice(first, first + LOOKS_PER_STEP)
        canary, control = _cumulative_rates(_looks(counts, step))
        beyond.append(canary - control > MARGIN)
    return np.concatenate(beyond, axis=-1)


def peeking_z(counts: Counts, alpha: float) -> Flags:
    """A one-sided pooled two-proportion z-test of the cumulative counts at each look."""
    canary, control = _cumulative_rates(counts)
    n1, n0 = np.cumsum(counts.canary_n, axis=-1), np.cumsum(counts.control_n, axis=-1)
    pooled = (canary * n1 + control * n0) / (n1 + n0)
    error = np.sqrt(pooled * (1.0 - pooled) * (1.0 / np.maximum(n1, 1) + 1.0 / np.maximum(n0, 1)))
    result: Flags = canary - control > -ndtri(alpha) * error
    return result


def requests_until(hit: Flags, counts: Counts) -> Array:
    """Canary requests until the first hit of each run; NaN where there is none."""
    seen = np.cumsum(counts.canary_n, axis=-1)
    first = np.take_along_axis(seen, hit.argmax(axis=-1)[:, None], axis=-1)[:, 0]
    return np.where(hit.any(axis=-1), first, np.nan)


def share_of_runs(hit: Flags) -> float:
    return float(hit.any(axis=-1).mean())


def correlated_errors(rng: Rng, runs: int) -> tuple[Counts, Counts]:
    """A healthy rollout in which each failing unit fails five times: as requests, and as units."""
    shares = five_steps()
    units = draw(rng, runs=runs, shares=shares, control=0.002, canary=0.002)
    extra = 4.0
    requests = Counts(
        units.canary_n + extra * units.canary_events,
        units.canary_events * (1.0 + extra),
        units.control_n + extra * units.control_events,
        units.control_events * (1.0 + extra),
    )
    return requests, units


def incident(rng: Rng, runs: int) -> Counts:
    """1 % errors, and 10 % in both versions alike from the 50 % step on."""
    shares = five_steps()
    rate = np.where(shares >= 0.5, 0.10, 0.01)
    return draw(rng, runs=runs, shares=shares, control=rate, canary=rate)


def latency_requests(rng: Rng, runs: int, slower: Callable[[Rng, Array], Array]) -> Array:
    """Canary requests until the averaged p95 and p99 e-values roll back, α = 0.05, 5 % share.

    Latencies are lognormal with σ = 0.5; `slower` changes the canary's logarithms of latency over
    the median.
    """
    sigma, looks = 0.5, 160
    canary_n = rng.binomial(PER_LOOK, 0.05, (runs, looks))
    latency = slower(rng, sigma * rng.standard_normal((runs, looks, int(canary_n.max()))))
    counted = np.arange(latency.shape[-1]) < canary_n[..., None]
    margins, paths, beyond = (0.025, 0.01), [], np.zeros((runs, looks), dtype=bool)
    for margin, tail in zip(margins, (0.05, 0.01), strict=True):
        over = ((latency > -sigma * ndtri(tail)) & counted).sum(axis=-1)
        control_over = rng.binomial(PER_LOOK - canary_n, tail)
        columns = (canary_n, over, PER_LOOK - canary_n, control_over)
        counts = Counts(*(column.astype(np.float64) for column in columns))
        paths.append(eprocess.follow(counts, margin=margin, expected_rate=tail))
        beyond |= paths[-1].exceeds(margin)
    harm = np.logaddexp(paths[0].margin, paths[1].margin) - math.log(2.0)
    zero = np.logaddexp(paths[0].zero, paths[1].zero) - math.log(2.0)
    needed = -math.log(0.05)
    hit = (harm >= needed) | ((np.maximum.accumulate(zero, axis=-1) >= needed) & beyond)
    return requests_until(hit, counts)


def twenty_percent_slower(_: Rng, log_latency: Array) -> Array:
    return log_latency + math.log(1.2)


def three_percent_ten_times_slower(rng: Rng, log_latency: Array) -> Array:
    slow = rng.random(log_latency.shape) < 0.03
    return log_latency + math.log(10.0) * slow


Sums = tuple[Array, Array]


@dataclass(frozen=True)
class Peeking:
    """An A/A or A/B experiment under continuous looks: units that come to (control, treatment)."""

    name: str
    sizes: Sequence[tuple[int, int]]
    control: Callable[[Rng, int, int], Sums]
    treatment: Callable[[Rng, int, int], Sums]
    is_rate: bool = False


def peek(rng: Rng, case: Peeking, *, runs: int, alpha: float = 0.025) -> tuple[float, float]:
    """Share of runs that are ever significant: by the sequential reading, and by peeking at z."""
    planned = sum(a + b for a, b in case.sizes)
    z_fixed = -float(ndtri(0.025))
    found, fooled = np.zeros(runs, dtype=bool), np.zeros(runs, dtype=bool)
    na = nb = 0
    sums = np.zeros((4, runs))
    for size_a, size_b in case.sizes:
        na, nb = na + size_a, nb + size_b
        sums += np.array((*case.control(rng, size_a, runs), *case.treatment(rng, size_b, runs)))
        z, speaks = _z_and_voice(sums, na, nb, is_rate=case.is_rate)
        found |= speaks & (np.abs(z) > sequential.boundary(na + nb, alpha, planned)[0])
        fooled |= np.abs(z) > z_fixed
    return float(found.mean()), float(fooled.mean())


def _z_and_voice(sums: Array, na: int, nb: int, *, is_rate: bool) -> tuple[Array, Flags]:
    """z of the difference, and where the sequential reading is not silent."""
    mean_a, mean_b = sums[0] / na, sums[2] / nb
    enough = min(na, nb) >= sequential.UNITS_MIN
    if is_rate:
        pooled = (sums[0] + sums[2]) / (na + nb)
        variance = pooled * (1.0 - pooled) * (1.0 / na + 1.0 / nb)
        rarer = np.minimum(pooled, 1.0 - pooled) * (na + nb)
        speaks = enough & (rarer >= sequential.EVENTS_MIN)
        speaks &= min(na, nb) / (na + nb) * rarer >= sequential.EXPECTED_MIN
    else:
        variance = (sums[1] / na - mean_a**2) / (na - 1) + (sums[3] / nb - mean_b**2) / (nb - 1)
        speaks = np.full(mean_a.shape, enough)
    error = np.sqrt(np.maximum(variance, 0.0))
    z = np.divide(mean_b - mean_a, error, out=np.zeros_like(error), where=error > 0.0)
    return z, speaks


def normal(mean: float = 0.0) -> Callable[[Rng, int, int], Sums]:
    """Sums and sums of squares of standard normal values, drawn without the values themselves."""

    def arm(rng: Rng, n: int, runs: int) -> Sums:
        total = rng.normal(n * mean, math.sqrt(n), runs)
        spread = rng.chisquare(n - 1, runs) if n > 1 else np.zeros(runs)
        return total, spread + total**2 / n

    return arm


def rate(p: float) -> Callable[[Rng, int, int], Sums]:
    def arm(rng: Rng, n: int, runs: int) -> Sums:
        events = rng.binomial(n, p, runs).astype(np.float64)
        return events, events

    return arm


def lognormal(sigma: float) -> Callable[[Rng, int, int], Sums]:
    def arm(rng: Rng, n: int, runs: int) -> Sums:
        values = np.exp(sigma * rng.standard_normal((runs, n)))
        return values.sum(axis=-1), (values**2).sum(axis=-1)

    return arm


def even_looks(looks: int, size_a: int, size_b: int) -> list[tuple[int, int]]:
    return [(size_a, size_b)] * looks


def log_looks(looks: int, first: int, last: int) -> list[tuple[int, int]]:
    ends = np.unique(np.geomspace(first, last, looks).astype(int))
    return [(int(n), int(n)) for n in np.diff(ends, prepend=0)]


def peeking_cases() -> Iterator[Peeking]:
    dense = [(2, 2), *even_looks(999, 1, 1)]
    for p in (0.10, 0.005):
        yield Peeking(f"A/A, rate {p:.1%}", even_looks(500, 100, 100), rate(p), rate(p), True)
    split = even_looks(500, 190, 10)
    yield Peeking("A/A, rate 2% at 95:5", split, rate(0.02), rate(0.02), True)
    yield Peeking("A/A, normal means", even_looks(500, 20, 20), normal(), normal())
    heavy = lognormal(2.0)
    yield Peeking("A/A, lognormal σ = 2", even_looks(250, 20, 20), heavy, heavy)
    yield Peeking("A/A, normal, every pair to 2,000 units", dense, normal(), normal())
    far = log_looks(300, 50, 1_000_000)
    yield Peeking("A/A, normal, log-spaced looks to 2,000,000", far, normal(), normal())
    yield Peeking("A/B, rate 10% to 12%", even_looks(100, 77, 77), rate(0.10), rate(0.12), True)
    yield Peeking("A/B, normal, 0.1 σ", even_looks(100, 31, 31), normal(), normal(0.1))


def catching(rng: Rng, runs: int) -> Iterator[Row]:
    for share in (0.01, 0.05, 0.25, 0.50):
        for before, after in ((0.01, 0.03), (0.01, 0.10), (0.001, 0.02)):
            looks = max(10, int((2500 if after < 0.05 else 800) / (share * PER_LOOK)))
            shares = np.full(looks, share)
            counts = draw(rng, runs=runs, shares=shares, control=before, canary=after)
            taken = requests_until(rolled_back(counts, 0.05), counts)
            yield Row(
                "canary requests until a bad canary is rolled back (α = 0.05)",
                f"{share:.0%} share, {before:.1%} to {after:.0%} errors",
                f"mean {np.nanmean(taken):.0f}, median {np.nanmedian(taken):.0f}, "
                f"missed {np.isnan(taken).mean():.1%}",
            )
    rates = np.where(np.arange(320) < 200, 0.01, 0.10)
    counts = draw(rng, runs=runs, shares=np.full(320, 0.05), control=0.01, canary=rates)
    taken = requests_until(rolled_back(counts, 0.05)[:, 200:], _looks(counts, slice(200, None)))
    yield Row(
        "canary requests until a bad canary is rolled back (α = 0.05)",
        "5% share, 1.0% to 10% errors after 50,000 healthy requests",
        f"mean {np.nanmean(taken):.0f}, median {np.nanmedian(taken):.0f}, "
        f"missed {np.isnan(taken).mean():.1%}",
    )


def false_rollbacks(rng: Rng, runs: int) -> Iterator[Row]:
    table = "a healthy canary rolled back in a five-step rollout"
    healthy = draw(rng, runs=3 * runs, shares=five_steps(), control=0.01, canary=0.01)
    for alpha in (0.05, 0.01):
        hit = share_of_runs(rolled_back(healthy, alpha))
        error = math.sqrt(hit * (1.0 - hit) / (3 * runs))
        yield Row(table, f"e-process, α = {alpha}", f"{hit:.2%} ± {error:.2%} (simulation error)")
    hit = share_of_runs(threshold_rule(healthy))
    yield Row(table, "error rate above stable's + 1 point at any look", f"{hit:.1%}")
    hit = share_of_runs(peeking_z(healthy, 0.05))
    yield Row(table, "z-test at each look, α = 0.05", f"{hit:.1%}")
    both = incident(rng, runs)
    hit = share_of_runs(rolled_back(both, 0.05))
    yield Row(table, "incident in both versions: e-process per bucket", f"{hit:.1%}")
    hit = float(peeking_z(both, 0.05)[:, -1].mean())
    yield Row(table, "incident in both versions: pooled z, one look at the end", f"{hit:.1%}")
    requests, units = correlated_errors(rng, runs)
    hit = share_of_runs(rolled_back(requests, 0.05))
    yield Row(table, "five errors per failing user, counted as requests", f"{hit:.1%}")
    hit = share_of_runs(rolled_back(units, 0.05))
    yield Row(table, "five errors per failing user, counted once per unit", f"{hit:.1%}")


def promotions(rng: Rng, runs: int) -> Iterator[Row]:
    for p in (0.002, 0.01, 0.05):
        shares = np.full(400, 0.05)
        healthy = draw(rng, runs=runs, shares=shares, control=p, canary=p, per_look=1000)
        taken = requests_until(promoted(healthy), healthy)
        yield Row(
            "canary requests until a healthy canary is proven safe (α = 0.1)",
            f"5% share, {p:.1%} errors",
            f"mean {np.nanmean(taken):.0f}, not within {0.05 * 400_000:,.0f}: "
            f"{np.isnan(taken).mean():.1%}",
        )
        worse = draw(rng, runs=runs, shares=shares, control=p, canary=p + MARGIN, per_look=1000)
        yield Row(
            "a canary worse by exactly the margin ever proven safe (α = 0.1)",
            f"5% share, {p:.1%} errors",
            f"{share_of_runs(promoted(worse)):.1%}",
        )


def latencies(rng: Rng, runs: int) -> Iterator[Row]:
    table = "canary requests until a slow canary is rolled back (α = 0.05)"
    cases = (
        ("20% slower (lognormal latency, σ = 0.5)", twenty_percent_slower),
        ("3% of requests ten times slower", three_percent_ten_times_slower),
    )
    for name, slower in cases:
        taken = latency_requests(rng, runs, slower)
        missed = np.isnan(taken).mean()
        yield Row(table, name, f"mean {np.nanmean(taken):.0f}, missed {missed:.1%}")


def experiments(rng: Rng, runs: int) -> Iterator[Row]:
    for case in peeking_cases():
        found, fooled = peek(rng, case, runs=runs)
        yield Row(
            "experiments ever significant under continuous looks (α = 0.05)",
            case.name,
            f"sequential half {found:.2%}, z at each look {fooled:.1%}",
        )


def main(runs: int = 2000) -> None:
    """Print every table, grouped; about three minutes on two cores."""
    printed = set()
    for rows in (catching, false_rollbacks, latencies, promotions, experiments):
        # Each group has its own seed: a new row elsewhere must not change these figures.
        for row in sorted(rows(np.random.default_rng(SEED), runs), key=lambda row: row.table):
            if row.table not in printed:
                printed.add(row.table)
                print(f"\n{row.table}")
            print(f"  {row.case:<62} {row.figure}", flush=True)


def _looks(counts: Counts, which: slice) -> Counts:
    columns = (counts.canary_n, counts.canary_events, counts.control_n, counts.control_events)
    return Counts(*(column[:, which] for column in columns))


def _cumulative_rates(counts: Counts) -> tuple[Array, Array]:
    canary = np.cumsum(counts.canary_events, axis=-1) / np.maximum(
        np.cumsum(counts.canary_n, axis=-1), 1.0
    )
    control = np.cumsum(counts.control_events, axis=-1) / np.maximum(
        np.cumsum(counts.control_n, axis=-1), 1.0
    )
    return canary, control


if __name__ == "__main__":
    main()
