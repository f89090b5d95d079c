"""Section B: changes of weights during a drift of the base rate, and levels, give no false winner.

An A/A test has 10,000 units at 90:10, then 10,000 at 50:50, while control's rate or mean drifts
between the phases. Units of buckets that move are excluded, as in the product. The simulation draws
co-moments of each arm, phase and level; the product's own functions estimate and read them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, reduce

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from apps.experiments.phases import WeightPhase, phases_of
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import read_fixed
from apps.experiments.stats.data import ArmData, MetricData, MetricSpec, Stratum
from apps.experiments.stats.estimates import Estimate, compare_arms, estimate, rare_event_counts
from apps.experiments.stats.margins import judge_margin
from apps.experiments.stats.sequential import read_sequential
from bench.bars import Bar, Rng, share

Floats = NDArray[np.float64]

# The two-sided level of each of the two readings.
ALPHA = 0.025
# The largest allowed share of false wins of the treatment.
FALSE_WINS_MAX = 0.025
POWER_LOST_MAX = 0.02
RUNS_FULL = 2_000
UNITS = 10_000
PLANNED = 2 * UNITS
CONTROL_BP = (9_000, 5_000)
MOVES = (0.05, 0.06, 0.075, 0.10)
LEVELS = ("first", "second")
MARGIN = 0.01
BUYERS = (0.03, 0.06)
MANY_LEVELS = 50
SMALL_SHARES = (0.05, 0.01)
# Looks in each phase.
LOOKS = 25
# Below this z no sequential reading at ALPHA is significant, so that the look is skipped.
Z_LEAST = 2.0
RATE = MetricSpec("m", "primary", "proportion")
MEAN = replace(RATE, kind="mean")
KINDS = {
    "proportion": RATE,
    "mean": MEAN,
    "ratio": replace(RATE, kind="ratio"),
    "mean with CUPED": replace(MEAN, has_covariate=True),
}
# One arm's co-moments by stratum.
Strata = dict[Stratum, Comoments]


@dataclass(frozen=True)
class Case:
    """`rates` are the base rates of the phases; the treatment's are higher by `lift`.

    Each of two levels has half of the units, the second one twice the rate of the first.
    """

    kind: str
    rates: tuple[float, float]
    levels: tuple[str, ...] = ("",)
    lift: float = 0.0

    @property
    def spec(self) -> MetricSpec:
        return KINDS[self.kind]

    @property
    def name(self) -> str:
        before, after = (f"{100.0 * rate:g}" for rate in self.rates)
        levels = " by two levels" if len(self.levels) > 1 else ""
        return f"{self.kind}{levels}, {before} → {after} %"


@cache
def _phases() -> list[WeightPhase]:
    at = datetime(2026, 3, 1, tzinfo=UTC)
    return phases_of(["a", "b"], [(at, {"a": bp, "b": 10_000 - bp}) for bp in CONTROL_BP])


def _kept(rng: Rng, phase: int, n: int, runs: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the units of a phase that each arm keeps: those whose bucket does not move."""
    weights = _phases()[phase]
    moved = sum(high - low for low, high in weights.moved) / 10_000
    kept = rng.binomial(n, 1.0 - moved, runs)
    treated = rng.binomial(kept, weights.shares["b"])
    return kept - treated, treated


def _draw(rng: Rng, spec: MetricSpec, n: int, rate: float) -> Comoments:
    """Draw the co-moments of n units.

    A proportion is binomial. Other values are normal with the variance of such a rate. The
    covariate explains half of a mean's variance, and a ratio's denominators are close to 5.
    """
    if spec.kind == "proportion":
        p = float(rng.binomial(n, rate)) / n
        return Comoments(n, (p,), (n * p * (1.0 - p),))
    sd = math.sqrt(rate * (1.0 - rate))
    means, root = np.array([rate]), np.array([[sd]])
    if spec.kind == "ratio":
        means, root = np.array([5.0 * rate, 5.0]), np.array([[rate, 5.0 * sd], [1.0, 0.0]])
    elif spec.has_covariate:
        half = sd / math.sqrt(2.0)
        means, root = np.array([rate, 0.0]), np.array([[half, half], [0.0, 1.0]])
    k = len(means)
    # Bartlett (1933): the products of deviations of standard normal values are L·Lᵀ.
    lower = np.tril(rng.normal(size=(k, k)), -1)
    lower[np.diag_indices(k)] = np.sqrt(rng.chisquare(n - 1 - np.arange(k)))
    spread = root @ lower
    products = (spread @ spread.T)[np.triu_indices(k)]
    shown = means + root @ rng.normal(size=k) / math.sqrt(n)
    return Comoments(n, tuple(shown.tolist()), tuple(products.tolist()))


def _arms(rng: Rng, case: Case) -> tuple[Strata, Strata]:
    """Draw both arms of one experiment at its planned end."""
    arms: tuple[Strata, Strata] = ({}, {})
    for phase in (0, 1):
        for i, level in enumerate(case.levels):
            base = case.rates[phase] * (1.0 if len(case.levels) == 1 else (1.0 + i) / 1.5)
            units = _kept(rng, phase, UNITS // len(case.levels), 1)
            for arm, n, lift in zip(arms, units, (0.0, case.lift), strict=True):
                arm[Stratum(phase, level)] = _draw(rng, case.spec, int(n[0]), base + lift)
    return arms


def _estimate(spec: MetricSpec, arms: tuple[Strata, Strata], *, is_pooled: bool) -> Estimate:
    """Return the product's estimate, or with `is_pooled` the former one, without phases."""
    control, treatment = (_arm(strata) for strata in arms)
    if is_pooled:
        control, treatment = replace(control, strata={}), replace(treatment, strata={})
    return estimate(spec, control, treatment)


def _arm(strata: Strata) -> ArmData:
    return ArmData(reduce(Comoments.merge, strata.values()), strata=strata)


def _wins(estimated: Estimate) -> bool:
    return (
        read_fixed(estimated.difference, ALPHA).is_significant and estimated.difference.effect > 0.0
    )


def _wins_at_a_look(estimated: Estimate) -> bool:
    reading = read_sequential(
        estimated.difference,
        n=estimated.n,
        alpha=ALPHA,
        planned_units=PLANNED,
        wait_reason=estimated.wait_reason,
    )
    return reading.is_significant and estimated.difference.effect > 0.0


def bars(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on false wins by both readings, and on power at constant rates."""
    # These cases are many, so that the quick form halves their runs.
    many = runs if runs >= RUNS_FULL else max(1, runs // 2)
    for kind in KINDS:
        for levels in (("",), LEVELS):
            for after in MOVES:
                case = Case(kind, (MOVES[0], after), levels)
                hits = sum(
                    _wins(_estimate(case.spec, _arms(rng, case), is_pooled=False))
                    for _ in range(many)
                )
                yield share(f"A/A won at the end: {case.name}", hits, many, FALSE_WINS_MAX)
    for kind in ("proportion", "mean"):
        for after in MOVES:
            case = Case(kind, (MOVES[0], after))
            hits = int(_ever_won(rng, case, 2 * runs).sum())
            name = f"A/A won at any of {2 * LOOKS} looks: {case.name}"
            yield share(name, hits, 2 * runs, FALSE_WINS_MAX)
    yield from _margins(rng, many)
    yield _spend(rng, many)
    yield from _small_levels(rng, many)
    for kind in ("proportion", "mean"):
        yield _power_lost(rng, kind, 2 * many)


# --- guardrails and rare values ------------------------------------------------------------------


def _margins(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on verdicts of an arm that is worse by exactly its margin."""
    spec = replace(RATE, role="guardrail", margin=MARGIN, is_increase_better=False)
    for after in MOVES[1:]:
        case = Case("proportion", (MOVES[0], after), lift=MARGIN)
        states = []
        for _ in range(runs):
            arms = zip("ab", _arms(rng, case), strict=True)
            metric = MetricData(spec, {name: _arm(strata) for name, strata in arms})
            verdict = judge_margin(
                spec, compare_arms(metric, "a", "b"), rare_event_counts(metric, "a", "b"),
                alpha=ALPHA, planned_units=PLANNED, is_final=True, is_worse=False, stop_reason="",
            )  # fmt: skip
            states.append(verdict.state if verdict else "")
        for state in ("not-worse", "worse"):
            name = f"worse by exactly the margin is judged {state}: {case.name}"
            yield share(name, states.count(state), runs, ALPHA)


def _spend(rng: Rng, runs: int) -> Bar:
    """Return the bar on false verdicts for lognormal spend with few buyers."""
    before, after = BUYERS
    hits = 0
    for _ in range(runs):
        arms: tuple[Strata, Strata] = ({}, {})
        for phase, share_of in enumerate(BUYERS):
            units = _kept(rng, phase, UNITS, 1)
            for arm, n in zip(arms, units, strict=True):
                values = np.zeros((int(n[0]), 1))
                buyers = int(rng.binomial(len(values), share_of))
                values[:buyers, 0] = rng.lognormal(3.0, 1.0, buyers)
                arm[Stratum(phase)] = Comoments.of(values)
        hits += read_fixed(_estimate(MEAN, arms, is_pooled=False).difference, ALPHA).is_significant
    name = f"A/A won or lost at the end: spend, {before:.0%} → {after:.0%} buyers"
    return share(name, hits, runs, ALPHA)


def _small_levels(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on false verdicts of an A/A test with many levels in one phase.

    Large levels have larger values. The small arm has two units of some levels, and none of others.
    """
    sizes = 1.0 / np.arange(1, MANY_LEVELS + 1)
    values = np.linspace(3.0, 0.3, MANY_LEVELS)
    for small in SMALL_SHARES:
        hits = {"mean": 0, "proportion": 0}
        for _ in range(runs):
            level_of = rng.choice(MANY_LEVELS, UNITS, p=sizes / sizes.sum())
            treated = rng.random(UNITS) < small
            rows = {
                "mean": rng.normal(values[level_of], 1.0),
                "proportion": (rng.random(UNITS) < MOVES[0] * values[level_of]).astype(float),
            }
            for kind, y in rows.items():
                arms = _by_level(y, level_of, ~treated), _by_level(y, level_of, treated)
                estimated = _estimate(KINDS[kind], arms, is_pooled=False)
                hits[kind] += read_fixed(estimated.difference, ALPHA).is_significant
        for kind, count in hits.items():
            name = f"A/A won or lost: {kind} by {MANY_LEVELS} levels, {small:.0%} treated"
            yield share(name, count, runs, ALPHA)


def _by_level(values: Floats, levels: NDArray[np.int64], is_arm: NDArray[np.bool_]) -> Strata:
    return {
        Stratum(0, str(level)): Comoments.of(values[is_arm & (levels == level)].reshape(-1, 1))
        for level in np.unique(levels[is_arm])
    }


# --- looks ---------------------------------------------------------------------------------------


@dataclass
class Sums:
    """Count, mean and squared deviations of one arm's units in one phase, for each run."""

    n: Floats
    mean: Floats
    m2: Floats

    def add(self, n: Floats, mean: Floats, m2: Floats) -> None:
        """Merge more units into each run (Chan, Golub and LeVeque 1979)."""
        whole, delta = np.maximum(1.0, self.n + n), mean - self.mean
        self.m2 = self.m2 + m2 + delta**2 * (self.n * n / whole)
        self.mean = self.mean + delta * (n / whole)
        self.n = self.n + n

    def of(self, run: int) -> Comoments:
        n = int(self.n[run])
        return Comoments(n, (float(self.mean[run]),), (float(self.m2[run]),))


def _ever_won(rng: Rng, case: Case, runs: int) -> NDArray[np.bool_]:
    """Return for each run whether any look shows a win."""
    won = np.zeros(runs, dtype=bool)
    phases: list[list[Sums]] = []
    for phase in (0, 1):
        phases.append([Sums(*np.zeros((3, runs))) for _ in "ab"])
        for _ in range(LOOKS):
            units = _kept(rng, phase, UNITS // LOOKS, runs)
            for sums, n in zip(phases[-1], units, strict=True):
                sums.add(*_more(rng, case.spec, n, case.rates[phase]))
            for run in np.flatnonzero(~won & (_z(phases, case.spec) > Z_LEAST)):
                arms = [
                    {Stratum(i): each[side].of(run) for i, each in enumerate(phases)}
                    for side in (0, 1)
                ]
                estimated = _estimate(case.spec, (arms[0], arms[1]), is_pooled=False)
                won[run] = _wins_at_a_look(estimated)
    return won


def _more(
    rng: Rng, spec: MetricSpec, n: NDArray[np.int64], rate: float
) -> tuple[Floats, Floats, Floats]:
    known = np.maximum(1, n)
    if spec.kind == "proportion":
        p = rng.binomial(n, rate) / known
        return n.astype(float), p, n * p * (1.0 - p)
    sd = math.sqrt(rate * (1.0 - rate))
    mean = rate + sd * rng.normal(size=len(n)) / np.sqrt(known)
    return n.astype(float), mean, sd * sd * rng.chisquare(np.maximum(1e-9, n - 1.0))


def _z(phases: list[list[Sums]], spec: MetricSpec) -> Floats:
    """Return an approximate z for each run, which selects the looks to evaluate."""
    difference = variance = np.zeros(len(phases[0][0].n))
    for a, b in phases:
        n = np.maximum(1.0, a.n + b.n)
        p = (a.n * a.mean + b.n * b.mean) / n
        spread = [p * (1.0 - p)] * 2
        if spec.kind == "mean":
            spread = [each.m2 / np.maximum(1.0, each.n - 1.0) for each in (a, b)]
        difference = difference + a.n * b.n / n * (b.mean - a.mean)
        variance = variance + a.n * b.n / n**2 * (b.n * spread[0] + a.n * spread[1])
    z: Floats = difference / np.sqrt(np.maximum(variance, 1e-12))
    return z


# --- power ---------------------------------------------------------------------------------------


def _power_lost(rng: Rng, kind: str, runs: int) -> Bar:
    """Return the bar on the loss of power at constant rates relative to pooling.

    Pooling detects the difference with a power of 80 %. A test that does not assume constant rates
    can use at most the information Σ n1·n0/(n1 + n0) over the phases (Cochran's weights are
    optimal). The bar allows the cost of that at this difference, and two points more.
    """
    units = [[float(np.mean(each)) for each in _kept(rng, p, UNITS, 10_000)] for p in (0, 1)]
    within = sum(a * b / (a + b) for a, b in units)
    a, b = (sum(column) for column in zip(*units, strict=True))
    together = a * b / (a + b)
    critical = -float(ndtri(ALPHA / 2.0))
    needed = critical + float(ndtri(0.8))
    price = 0.8 - float(ndtr(needed * math.sqrt(within / together) - critical))
    rate = MOVES[0]
    lift = needed * math.sqrt(rate * (1.0 - rate) / together)
    case = Case(kind, (rate, rate), lift=lift)
    lost = np.empty(runs)
    for run in range(runs):
        arms = _arms(rng, case)
        before, now = (_estimate(case.spec, arms, is_pooled=pooled) for pooled in (True, False))
        lost[run] = _wins(before) - _wins(now)
    name = f"power below pooling at constant rates, {kind} (any such test: {price:.1%})"
    error = float(lost.std(ddof=1)) / math.sqrt(runs)
    return Bar(name, float(lost.mean()), error, price + POWER_LOST_MAX)
