"""The error rates of a rollout's outcome check: healthy canaries that fail, worse ones that pass.

numpy draws the values. The product's own functions decide, from the documents of the decision log,
at each look where a plain confidence sequence is close to a verdict. The margins are in the
metric's unit: a tenth of stable's mean for a healthy canary, and the exact loss for a worse one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.experiments.outcome_judge import CANARY, CONTROL, judge_outcome, to_json
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.data import ArmData, MetricData, MetricKind, MetricSpec, Stratum
from apps.experiments.stats.sequential import PLANNED_UNITS_DEFAULT, boundary
from apps.rollouts.check_kinds import OUTCOME, CheckDocument
from apps.rollouts.checks import CheckSettings
from apps.rollouts.verdicts import Verdict
from bench.bars import Bar, Rng, share

Floats = NDArray[np.float64]
# Draws runs × units × width values; the last argument multiplies the usual mean or ratio.
Draw = Callable[[Rng, tuple[int, int], float], Floats]

LOOKS, EACH = 48, 250
UNITS = LOOKS * EACH
SHARES = (0.05, 0.1, 0.5)
LEVEL = CheckSettings(alpha=0.05, alpha_promote=0.1)
# As shipped: two guardrails share 1 %.
SHIPPED = CheckSettings(alpha=0.01, alpha_promote=0.1, guardrails=2)
HEALTHY_MARGIN, WORSE_BY = 0.1, 0.5
# The product's bounds are never narrower than this factor of a plain confidence sequence's.
NEAR = 0.8
BATCH = 25


@dataclass(frozen=True)
class Kind:
    """A kind of value and its usual mean or ratio."""

    draw: Draw
    usual: float
    kind: MetricKind = "mean"


@dataclass(frozen=True)
class Step:
    """A step: the canary's share, the number of looks, and the level of all values."""

    share: float
    looks: int = LOOKS
    level: float = 1.0


def _lognormal(sigma: float) -> Kind:
    return Kind(
        lambda rng, shape, times: times * rng.lognormal(0.0, sigma, (*shape, 1)),
        math.exp(sigma**2 / 2),
    )


def _spend(buyers: float) -> Kind:
    """Amounts of about 20 by a share of the units; twice the level means twice the buyers."""

    def draw(rng: Rng, shape: tuple[int, int], times: float) -> Floats:
        values = np.zeros(shape[0] * shape[1])
        bought = np.flatnonzero(rng.random(values.size) < buyers * times)
        values[bought] = rng.lognormal(2.5, 1.0, bought.size)
        return values.reshape((*shape, 1))

    return Kind(draw, buyers * math.exp(3.0))


def _ratio(top: float, bottom: float) -> Kind:
    return Kind(
        lambda rng, shape, times: (
            np.array([times, 1.0]) * np.exp(rng.normal(0.0, (top, bottom), (*shape, 2)))
        ),
        math.exp((top**2 - bottom**2) / 2),
        "ratio",
    )


KINDS: dict[str, Kind] = {
    "spend, 0.5 % buyers": _spend(0.005),
    "spend, 1 % buyers": _spend(0.01),
    "spend, 3 % buyers": _spend(0.03),
    "spend, 10 % buyers": _spend(0.1),
    "lognormal, σ = 1": _lognormal(1.0),
    "lognormal, σ = 2": _lognormal(2.0),
    "exponential": Kind(
        lambda rng, shape, times: times * rng.standard_exponential((*shape, 1)), 1.0
    ),
    "ratio, σ = 1 over 1": _ratio(1.0, 1.0),
    "ratio, σ = 2 over 0.5": _ratio(2.0, 0.5),
}


def bars(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on wrong verdicts by kind of value and share, on refunds, and as shipped."""
    few = max(BATCH, runs // 10)
    for name, kind in KINDS.items():
        for canary in SHARES:
            arms = f"{100 * (1 - canary):.0f}:{100 * canary:.0f}"
            steps = (Step(canary),)
            hits = sum(healthy_fails(rng, kind, steps, few, LEVEL))
            yield share(f"outcome: healthy fails, {name}, {arms}", hits, few, LEVEL.alpha)
            hits = sum(worse_passes(rng, kind, steps, few))
            bound = LEVEL.alpha_promote
            yield share(f"outcome: worse by the margin passes, {name}, {arms}", hits, few, bound)
    yield from _two_steps(rng, few)
    yield from _refunds(rng, few)
    hits = sum(healthy_fails(rng, KINDS["spend, 1 % buyers"], (Step(0.05),), runs, SHIPPED))
    bound = SHIPPED.alpha / SHIPPED.guardrails
    yield share("outcome: healthy fails, spend, 1 % buyers, 95:5, as shipped", hits, runs, bound)


def _two_steps(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on 5 % for half of the units, then 50 % with all values doubled."""
    steps = (Step(0.05, LOOKS // 2), Step(0.5, LOOKS // 2, 2.0))
    for name in ("spend, 1 % buyers", "lognormal, σ = 1", "ratio, σ = 1 over 1"):
        hits = sum(healthy_fails(rng, KINDS[name], steps, runs, LEVEL))
        what = f"outcome: healthy fails, {name}, 95:5 then 50:50, all double"
        yield share(what, hits, runs, LEVEL.alpha)


def _refunds(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on a 5 % canary with four times the refunds, and a margin of half of that."""
    kind, passed, unseen = KINDS["spend, 1 % buyers"], 0, 0
    for run in _looks_of_runs(rng, kind, (Step(0.05),), runs, times=4.0):
        for look in _near(run, kind, 1.5 * kind.usual, LEVEL.alpha_promote, sign=1.0):
            if _verdict(run, look, kind, 1.5 * kind.usual, LEVEL, better="less") == Verdict.PASS:
                passed += 1
                unseen += not run.canary[: run.counts[look]].any()
                break
    what = "outcome: four times the refunds pass, 95:5"
    yield share(what, passed, runs, LEVEL.alpha_promote)
    # None may pass before a refund was observed: this is not an error rate.
    yield Bar(f"{what}, none seen yet", unseen / runs, 0.0, 0.0)


def healthy_fails(
    rng: Rng, kind: Kind, steps: Sequence[Step], runs: int, settings: CheckSettings
) -> Iterator[bool]:
    """Yield for each run whether a canary equal to stable ever fails; larger values are better."""
    margin, alpha = HEALTHY_MARGIN * kind.usual, settings.alpha / settings.guardrails
    for run in _looks_of_runs(rng, kind, steps, runs, times=1.0):
        looks = range(LOOKS) if len(steps) > 1 else _near(run, kind, margin, alpha, sign=-1.0)
        yield any(
            _verdict(run, look, kind, margin, settings, better="more") == Verdict.FAIL
            for look in looks
        )


def worse_passes(rng: Rng, kind: Kind, steps: Sequence[Step], runs: int) -> Iterator[bool]:
    """Yield for each run whether a canary that is worse by the margin ever passes.

    Smaller values are better, so that a small arm without large values looks good.
    """
    margin = WORSE_BY * kind.usual
    for run in _looks_of_runs(rng, kind, steps, runs, times=1.0 + WORSE_BY):
        yield any(
            _verdict(run, look, kind, margin, LEVEL, better="less") == Verdict.PASS
            for look in _near(run, kind, margin, LEVEL.alpha_promote, sign=1.0)
        )


# --- runs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Both arms' values in the order of their units.

    `counts` and `control_counts` are the units so far by look, `ends` the looks that end a step.
    """

    canary: Floats
    control: Floats
    counts: NDArray[np.int64]
    control_counts: NDArray[np.int64]
    ends: tuple[int, ...]


def _looks_of_runs(
    rng: Rng, kind: Kind, steps: Sequence[Step], runs: int, *, times: float
) -> Iterator[Run]:
    shares = np.repeat([step.share for step in steps], [step.looks for step in steps])
    ends = tuple(int(end) for end in np.cumsum([step.looks for step in steps]))
    for start in range(0, runs, BATCH):
        size = min(BATCH, runs - start)
        many = rng.binomial(EACH, shares, (size, LOOKS))
        canary, control = (
            np.concatenate(
                [kind.draw(rng, (size, step.looks * EACH), step.level * factor) for step in steps],
                axis=1,
            )
            for factor in (times, 1.0)
        )
        for i in range(size):
            is_canary = (np.arange(EACH) < many[i][:, None]).ravel()
            counts = many[i].cumsum()
            others = (EACH - many[i]).cumsum()
            yield Run(canary[i][is_canary], control[i][~is_canary], counts, others, ends)


def _near(run: Run, kind: Kind, margin: float, alpha: float, *, sign: float) -> list[int]:
    """Return the looks at which canary − control is close to `sign`·margin, from below.

    `sign` is −1 for a fail with larger values better, and 1 for a pass with smaller values better:
    in both cases the canary has the smaller values.
    """
    (one, noise), (other, more) = (
        _estimates(values, counts, kind)
        for values, counts in ((run.canary, run.counts), (run.control, run.control_counts))
    )
    whole = run.counts + run.control_counts
    level = min(0.999, 2.0 * alpha)
    critical = np.array([boundary(int(n), level, PLANNED_UNITS_DEFAULT)[0] for n in whole])
    with np.errstate(all="ignore"):
        is_near = one - other < sign * margin - NEAR * critical * np.sqrt(noise + more)
    return [int(look) for look in np.flatnonzero(is_near)]


def _estimates(values: Floats, counts: NDArray[np.int64], kind: Kind) -> tuple[Floats, Floats]:
    """Return an arm's mean or ratio, and its variance, at each look."""
    sums = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(axis=0)])[counts]
    with np.errstate(all="ignore"):
        means = sums / counts[:, None]
        if kind.kind == "ratio":
            level = means[:, 0] / means[:, 1]
            squares = [_squares(values, i, j, counts) for i, j in ((0, 0), (0, 1), (1, 1))]
            line = squares[0] - 2 * level * squares[1] + level**2 * squares[2]
            return level, line / counts / means[:, 1] ** 2 / (counts - 1)
        square = _squares(values, 0, 0, counts) / counts - means[:, 0] ** 2
        return means[:, 0], np.maximum(square, 0.0) / (counts - 1)


def _squares(values: Floats, i: int, j: int, counts: NDArray[np.int64]) -> Floats:
    sums: Floats = np.concatenate([[0.0], (values[:, i] * values[:, j]).cumsum()])[counts]
    return sums


# --- verdicts -------------------------------------------------------------------------------------


def _verdict(
    run: Run, look: int, kind: Kind, margin: float, settings: CheckSettings, *, better: str
) -> Verdict:
    arms = {
        CANARY: _arm(run.canary, run.counts, run.ends, look),
        CONTROL: _arm(run.control, run.control_counts, run.ends, look),
    }
    spec = MetricSpec("m", "guardrail", kind.kind, is_increase_better=better == "more")
    observed = {
        "metric": "m",
        "data": to_json(MetricData(spec, arms)),
        "exposed": {"canary": int(run.counts[look]), "control": int(run.control_counts[look])},
        "window_s": None,
        "until_step": 0,
    }
    check = CheckDocument(check=OUTCOME, settings={"metric": "m", "margin": margin})
    return judge_outcome(check, observed, settings).verdict


def _arm(values: Floats, counts: NDArray[np.int64], ends: tuple[int, ...], look: int) -> ArmData:
    """Return an arm's units up to the look, with a stratum for each of several steps."""
    whole = Comoments.of(values[: counts[look]])
    begun = [0, *(end for end in ends[:-1] if end <= look)]
    if len(begun) == 1:
        return ArmData(whole)
    starts = [0, *(int(counts[end - 1]) for end in begun[1:])]
    stops = [*starts[1:], int(counts[look])]
    strata = {
        Stratum(phase): Comoments.of(values[start:stop])
        for phase, (start, stop) in enumerate(zip(starts, stops, strict=True))
    }
    return ArmData(whole, strata=strata)
