"""Simulates the error rates and the speed of the product's decisions, with its own code.

All random numbers are seeded, so that two runs print the same. `--quick` makes a fifth of the runs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from apps.rollouts.eprocess import Counts
from apps.rollouts.thresholds import SAMPLES_MIN, false_alarm_rate
from bench import decisions_rules as rules
from bench.bars import SECTIONS, bars_of, line
from bench.decisions_peeking import peek, peeking_cases
from bench.decisions_rules import Array, Flags, Rng

SEED = 20_260_000
RUNS = 2_000
QUICK_RUNS = 400
SHARES = (0.01, 0.05, 0.25, 0.50)
CHANGES = ((0.01, 0.03), (0.01, 0.10), (0.001, 0.02))


@dataclass(frozen=True)
class Table:
    """A title, the columns' names, and rows whose first cell is the case."""

    title: str
    columns: Sequence[str]
    rows: Iterator[Sequence[str]]


CAUGHT = ("mean", "median", "missed", "bound", "ratio")


def catching(rng: Rng, runs: int) -> Iterator[Table]:
    """Yield tables of the canary requests until a bad canary is rolled back."""
    yield Table(
        "canary requests until a bad canary is rolled back (e-process, α = 0.05)",
        CAUGHT,
        (
            (
                f"{share:.0%} share, {before:.1%} to {after:.0%} errors",
                *_caught(rng, runs, share, before, after),
            )
            for share in SHARES
            for before, after in CHANGES
        ),
    )
    yield Table("the same with other settings (α = 0.05)", CAUGHT, _other_settings(rng, runs))
    yield Table(
        "mean canary requests of rules that also roll back healthy canaries, and missed runs",
        ("threshold", f"from {SAMPLES_MIN}", "z at each look"),
        _other_rules(rng, runs),
    )


def _looks_until(after: float, share: float) -> int:
    return max(10, int((2_500 if after < 0.05 else 800) / (share * rules.PER_LOOK)))


def _caught(rng: Rng, runs: int, share: float, before: float, after: float) -> Sequence[str]:
    shares = np.full(_looks_until(after, share), share)
    counts = rules.draw(rng, runs=runs, shares=shares, control=before, canary=after)
    taken = rules.requests_until(rules.rolled_back(counts, 0.05), counts)
    return _cells(taken, rules.error_bound(before, after, share))


def _cells(taken: Array, bound: float) -> Sequence[str]:
    mean = float(np.nanmean(taken))
    return (
        f"{mean:.0f}",
        f"{np.nanmedian(taken):.0f}",
        f"{np.isnan(taken).mean():.1%}",
        f"{bound:.0f}",
        f"{mean / bound:.2f}",
    )


def _other_settings(rng: Rng, runs: int) -> Iterator[Sequence[str]]:
    for before, after in CHANGES:
        slice_ = rules.equal_slice(rng, runs=runs, looks=500, control=before, canary=after)
        taken = rules.requests_until(rules.rolled_back(slice_, 0.05), slice_)
        name = f"5% against an equal slice, {before:.1%} to {after:.0%}"
        yield name, *_cells(taken, rules.error_bound(before, after, 0.5))
    rates = np.where(np.arange(320) < 200, 0.01, 0.10)
    counts = rules.draw(rng, runs=runs, shares=np.full(320, 0.05), control=0.01, canary=rates)
    hit = rules.rolled_back(counts, 0.05)[:, 200:]
    taken = rules.requests_until(hit, rules.looks_of(counts, slice(200, None)))
    bound = rules.error_bound(0.01, 0.10, 0.05)
    yield "5% share, 1.0% to 10% after 50,000 healthy requests", *_cells(taken, bound)
    counts = rules.draw(rng, runs=runs, shares=np.full(160, 0.05), control=0.0, canary=0.03)
    taken = rules.requests_until(rules.rolled_back(counts, 0.05), counts)
    yield "5% share, stable has no errors, 3%", *_cells(taken, rules.error_bound(0.0, 0.03, 0.05))


def _other_rules(rng: Rng, runs: int) -> Iterator[Sequence[str]]:
    for before, after in CHANGES:
        shares = np.full(rules.LOOKS_PER_STEP * 5, 0.05)
        counts = rules.draw(rng, runs=runs, shares=shares, control=before, canary=after)
        hits_by_rule = (
            rules.threshold_rule(counts),
            rules.threshold_rule(counts, SAMPLES_MIN),
            rules.peeking_z(counts, 0.05),
        )
        yield (
            f"5% share, {before:.1%} to {after:.0%} errors",
            *(_mean(hit, counts) for hit in hits_by_rule),
        )


def _mean(hit: Flags, counts: Counts) -> str:
    taken = rules.requests_until(hit, counts)
    return f"{np.nanmean(taken):.0f} ({np.isnan(taken).mean():.1%})"


World = Callable[[Rng, int], Counts]


def healthy(rng: Rng, runs: int) -> Counts:
    return rules.draw(rng, runs=runs, shares=rules.five_steps(), control=0.01, canary=0.01)


def as_requests(rng: Rng, runs: int) -> Counts:
    return rules.correlated_errors(rng, runs)[0]


def as_units(rng: Rng, runs: int) -> Counts:
    return rules.correlated_errors(rng, runs)[1]


WORLDS: tuple[tuple[str, World, int], ...] = (
    ("1% errors in both", healthy, 2),
    ("1%, then an incident with 10% in both", rules.incident, 1),
    ("0.2% of units fail five times each, as requests", as_requests, 1),
    ("0.2% of units fail five times each, once per unit", as_units, 1),
)
FIVE_STEPS = rules.steps_of(rules.five_steps())
RULES: dict[str, Callable[[Counts], Flags]] = {
    "e α=0.05": lambda counts: rules.rolled_back(counts, 0.05, FIVE_STEPS),
    "e α=0.01": lambda counts: rules.rolled_back(counts, 0.01, FIVE_STEPS),
    "threshold": rules.threshold_rule,
    f"from {SAMPLES_MIN}": lambda counts: rules.threshold_rule(counts, SAMPLES_MIN),
    "z each look": lambda counts: rules.peeking_z(counts, 0.05),
    "z at end": lambda counts: rules.pooled_z(counts, 0.05),
}


def false_rollbacks(rng: Rng, runs: int) -> Iterator[Table]:
    """Yield tables of the share of healthy canaries that are rolled back, by rule."""
    yield Table(
        "healthy canaries rolled back in a five-step rollout, with a look every 250 requests",
        tuple(RULES),
        _false_rollbacks(rng, runs),
    )
    yield Table(
        "false alarms of the threshold as shown in the UI for this plan, 1% errors",
        ("false alarms",),
        iter(
            (
                ("without a minimum of samples", f"{false_alarm_rate(samples_min=1):.0%}"),
                (f"from {SAMPLES_MIN} samples on each side", f"{false_alarm_rate():.0%}"),
            )
        ),
    )


def _false_rollbacks(rng: Rng, runs: int) -> Iterator[Sequence[str]]:
    for name, world, parts in WORLDS:
        shares = []
        for _ in range(parts):
            counts = world(rng, runs)
            shares.append([rules.share_of_runs(rule(counts)) for rule in RULES.values()])
        means = np.mean(shares, axis=0)
        yield name, *(f"{share:.2%}" for share in means)
        if world is healthy:
            errors = np.sqrt(means * (1.0 - means) / (parts * runs))
            yield "  simulation error (standard)", *(f"±{error:.2%}" for error in errors)


def latencies(rng: Rng, runs: int) -> Iterator[Table]:
    """Yield tables of the requests until a slow canary is rolled back, and of false rollbacks."""
    yield Table(
        "canary requests until a slow canary is rolled back (p50, p95, p99; 5% share, α = 0.05)",
        CAUGHT,
        _latencies(rng, runs),
    )
    yield Table(
        "a canary as fast as stable rolled back for latency within 40,000 requests (α = 0.05)",
        ("rolled back",),
        _fast_ones(rng, runs),
    )


def _latencies(rng: Rng, runs: int) -> Iterator[Sequence[str]]:
    cases = (
        ("20% slower (lognormal latency, σ = 0.5)", rules.twenty_percent_slower),
        ("3% of requests ten times slower", rules.three_percent_ten_times_slower),
    )
    for name, slower in cases:
        hit, counts = rules.latency_rolled_back(rng, runs, slower)
        yield name, *_cells(rules.requests_until(hit, counts), rules.latency_bound(rng, slower))


def _fast_ones(rng: Rng, runs: int) -> Iterator[Sequence[str]]:
    hit, _ = rules.latency_rolled_back(rng, runs, rules.as_before)
    share = rules.share_of_runs(hit)
    yield "equal latency", f"{share:.2%} ± {math.sqrt(share * (1.0 - share) / runs):.2%}"


def promotions(rng: Rng, runs: int) -> Iterator[Table]:
    """Yield a table of the requests until a canary is proven safe, and of false proofs."""
    yield Table(
        "canary requests until a healthy canary is proven safe (5% share, α = 0.1)",
        ("mean", "not in 20,000", "worse by the margin proven safe"),
        # The product evaluates each look of all runs, so that a quarter of the runs is made.
        _promotions(rng, max(100, runs // 4)),
    )


def _promotions(rng: Rng, runs: int) -> Iterator[Sequence[str]]:
    shares = np.full(400, 0.05)
    for p in (0.002, 0.01, 0.05):
        counts = [
            rules.draw(rng, runs=runs, shares=shares, control=p, canary=canary, per_look=1_000)
            for canary in (p, p + rules.MARGIN)
        ]
        taken = rules.requests_until(rules.promoted(counts[0]), counts[0])
        yield (
            f"{p:.1%} errors",
            f"{np.nanmean(taken):.0f}",
            f"{np.isnan(taken).mean():.1%}",
            f"{rules.share_of_runs(rules.promoted(counts[1])):.1%}",
        )


def experiments(rng: Rng, runs: int) -> Iterator[Table]:
    """Yield a table of the share of experiments that are ever significant."""
    rows = (
        (case.name, *(f"{share:.2%}" for share in peek(rng, case, runs=runs)))
        for case in peeking_cases()
    )
    yield Table(
        "experiments ever significant under continuous looks (α = 0.05)",
        ("sequential half", "z at each look"),
        rows,
    )


GROUPS = (catching, false_rollbacks, latencies, promotions, experiments)


def main(runs: int | None = None) -> int:
    """Print every table and every bar; return 1 if a bar is missed, else 0."""
    parser = argparse.ArgumentParser(prog="./run bench-decisions", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help=f"make {QUICK_RUNS} runs instead of {RUNS}"
    )
    parser.add_argument(
        "--only", nargs="+", choices=sorted(SECTIONS), help="print only the bars of these sections"
    )
    options = parser.parse_args(sys.argv[2:] if runs is None else [])
    runs = runs or (QUICK_RUNS if options.quick else RUNS)
    print(f"{runs:,} runs per case; bound: the mean requests that any test of this level needs")
    for group in () if options.only else GROUPS:
        # Each group has its own generator, so that a new row elsewhere does not change it.
        for table in group(np.random.default_rng(SEED), runs):
            _print(table)
    return _print_bars(options.only or SECTIONS, runs)


def _print_bars(sections: Iterable[str], runs: int) -> int:
    """Print the bars of `sections`; return 1 if any is missed by more than two standard errors."""
    missed = 0
    for section in sections:
        print(f"\n{section} | measured ± standard error | required")
        for bar in bars_of(section, np.random.default_rng(SEED), runs):
            print(line(bar), flush=True)
            missed += bar.is_missed
    if missed:
        print(f"\n{missed} bars are missed", file=sys.stderr)
    return min(missed, 1)


def _print(table: Table) -> None:
    widths = [max(8, len(column)) for column in table.columns]
    print(f"\n{table.title}")
    print(_row("", table.columns, widths))
    for name, *cells in table.rows:
        print(_row(name, cells, widths), flush=True)


def _row(name: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    text = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return f"  {name:<52}{text}"


if __name__ == "__main__":
    sys.exit(main())
