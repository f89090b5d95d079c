"""A transformation of the values changes the results accordingly, and in no other way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import UpliftState
from apps.experiments.stats.data import (
    ArmData,
    ArmSpec,
    ExperimentData,
    MetricData,
    MetricSpec,
    Phase,
    Stratum,
)
from apps.experiments.stats.quantiles import order_statistics_of
from apps.experiments.stats.report import Report, make_report

Floats = NDArray[np.float64]

RATE = MetricSpec("m", "primary", "proportion")
MEAN = replace(RATE, kind="mean")
RATIO = replace(RATE, kind="ratio")
MEDIAN = replace(RATE, kind="quantile", quantile=0.5)
SPECS = {
    "proportion": RATE,
    "mean": MEAN,
    "mean with a covariate": replace(MEAN, has_covariate=True),
    "ratio": RATIO,
    "ratio with a covariate": replace(RATIO, has_covariate=True),
    "median": MEDIAN,
}
# Units of control and treatment by phase and level.
SHAPES: dict[str, dict[Stratum, tuple[int, int]]] = {
    "one": {Stratum(0): (1_900, 400)},
    "levels": {Stratum(0, "x"): (900, 150), Stratum(0, "y"): (700, 120), Stratum(0, "z"): (60, 9)},
    "phases": {Stratum(0): (1_800, 200), Stratum(1): (20, 10), Stratum(2): (1_000, 1_000)},
    "both": {Stratum(p, lv): (400, 60 + 200 * p) for p in (0, 1) for lv in "xyz"},
}
# One arm's rows of values by stratum.
Rows = dict[Stratum, Floats]


def columns(spec: MetricSpec, rng: np.random.Generator, n: int, lift: float) -> Floats:
    if spec.kind == "proportion":
        return (rng.random((n, 1)) < 0.2 + 0.1 * lift).astype(float)
    past = rng.lognormal(0.0, 0.7, (n, 2))
    now = past * rng.lognormal(0.0, 0.5, (n, 2)) + [lift, 0.5]
    width = 2 if spec.kind == "ratio" else 1
    return np.column_stack([now[:, :width], past[:, :width]][: 1 + spec.has_covariate])


def drawn(spec: MetricSpec, shape: str, seed: int) -> tuple[Rows, Rows]:
    """Return both arms' rows; the lift of the treatment depends on the seed."""
    rng, lift = np.random.default_rng(seed), (0.0, 0.12, 0.3, -0.3)[seed % 4]
    arms: tuple[Rows, Rows] = ({}, {})
    for at, units in SHAPES[shape].items():
        for rows, n, add in zip(arms, units, (0.0, lift), strict=True):
            rows[at] = columns(spec, rng, n, add + at.phase * 0.5 + 0.1 * len(at.level))
    return arms


def arm(spec: MetricSpec, rows: Rows) -> ArmData:
    parts = {at: Comoments.of(each) for at, each in rows.items()}
    last = max(at.phase for at in rows)
    now = np.sort(np.concatenate([each[:, 0] for at, each in rows.items() if at.phase == last]))
    order = order_statistics_of(now, spec.quantile or 0.5) if spec.kind == "quantile" else None
    whole = reduce(Comoments.merge, parts.values())
    return ArmData(whole, order, strata=parts if list(parts) != [Stratum()] else {})


def report(spec: MetricSpec, arms: tuple[Rows, Rows], margin: float, *, is_final: bool) -> Report:
    known = dict(zip("ab", (arm(spec, rows) for rows in arms), strict=True))
    guardrail = replace(spec, name="g", role="guardrail", margin=margin)
    units = {name: each.comoments.n for name, each in known.items()}
    specs = (ArmSpec("a", 5_000, is_control=True), ArmSpec("b", 5_000))
    shares = {name: n / sum(units.values()) for name, n in units.items()}
    metrics = MetricData(spec, known), MetricData(guardrail, known)
    data = ExperimentData(specs, units, (Phase(units, shares),), metrics)
    return make_report(data, alpha=0.05, planned_units=1_000, is_final=is_final)


@dataclass(frozen=True)
class Summary:
    """The numbers of both readings and of the guardrail, in the metric's unit."""

    outcomes: tuple[str, str]
    states: tuple[str, ...]
    p_values: tuple[float | None, ...]
    numbers: dict[str, float | None]
    uplifts: dict[str, float | None]


def summarize(spec: MetricSpec, arms: tuple[Rows, Rows], margin: float = 0.2) -> Summary:
    reports = [report(spec, arms, margin, is_final=is_final) for is_final in (False, True)]
    first = [each.primary.comparisons[0] for each in reports]
    judged = [each.metrics[1].comparisons[0].non_inferiority for each in reports]
    assert None not in judged
    readings = first[0].sequential, first[1].fixed
    numbers: dict[str, float | None] = {"difference": first[0].difference}
    uplifts: dict[str, float | None] = {}
    for name, reading in zip(("running", "final"), readings, strict=True):
        numbers |= {f"{name}_low": reading.low, f"{name}_high": reading.high}
        if reading.uplift_state is UpliftState.OK:
            uplifts |= {f"{name}_low": reading.uplift_low, f"{name}_high": reading.uplift_high}
    numbers |= {f"bound_{i}": each.bound for i, each in enumerate(judged) if each}
    return Summary(
        (first[0].outcome, first[1].outcome),
        (*(str(reading.state) for reading in readings), *(each.state for each in judged if each)),
        tuple(reading.p_value for reading in readings),
        numbers,
        uplifts,
    )


def near(
    one: Mapping[str, float | None],
    other: Mapping[str, float | None],
    rel: float,
    absolute: float = 1e-12,
) -> bool:
    def close(x: float | None, y: float | None) -> bool:
        if x is None or y is None:
            return x is y
        return math.isclose(x, y, rel_tol=rel, abs_tol=absolute)

    return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)


def changed(arms: tuple[Rows, Rows], how: Callable[[Floats], Floats]) -> tuple[Rows, Rows]:
    control, treatment = ({at: how(rows) for at, rows in each.items()} for each in arms)
    return control, treatment


def first_column(how: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    return lambda rows: np.column_stack([how(rows[:, 0]), rows[:, 1:]])


def assert_same(one: Summary, other: Summary, *, scale: float = 1.0, rel: float = 1e-7) -> None:
    assert one.outcomes == other.outcomes
    assert one.states == other.states
    scaled = {key: v if v is None else v * scale for key, v in one.numbers.items()}
    assert near(scaled, other.numbers, rel)
    assert near(dict(enumerate_named(one.p_values)), dict(enumerate_named(other.p_values)), rel)


def enumerate_named(values: tuple[float | None, ...]) -> list[tuple[str, float | None]]:
    return [(str(i), value) for i, value in enumerate(values)]


every = pytest.mark.parametrize("name", SPECS)
shapes = pytest.mark.parametrize("shape", SHAPES)
seeds = pytest.mark.parametrize("seed", range(4))


@every
@shapes
@seeds
def test_the_order_of_units_has_no_effect(name: str, shape: str, seed: int) -> None:
    spec, rng = SPECS[name], np.random.default_rng(seed)
    arms = drawn(spec, shape, seed)

    assert_same(summarize(spec, arms), summarize(spec, changed(arms, rng.permutation)))


@every
@shapes
@seeds
def test_the_unit_of_measurement_has_no_effect(name: str, shape: str, seed: int) -> None:
    spec = SPECS[name]
    if spec.kind == "proportion":
        return
    arms, scale = drawn(spec, shape, seed), 1_024.0
    larger = changed(arms, first_column(lambda y: scale * y))

    one, other = summarize(spec, arms), summarize(spec, larger, 0.2 * scale)

    assert_same(one, other, scale=scale)
    assert near(one.uplifts, other.uplifts, 1e-7)


@every
@shapes
@seeds
def test_the_names_of_levels_have_no_effect(name: str, shape: str, seed: int) -> None:
    spec, arms = SPECS[name], drawn(SPECS[name], shape, seed)
    names = {"x": "zz", "y": "a", "z": "q", "": ""}
    control, treatment = (
        {Stratum(at.phase, names[at.level]): rows for at, rows in each.items()} for each in arms
    )

    assert_same(summarize(spec, arms), summarize(spec, (control, treatment)))


@every
@shapes
@seeds
def test_what_is_better_is_worse_in_the_other_direction(name: str, shape: str, seed: int) -> None:
    spec, arms = SPECS[name], drawn(SPECS[name], shape, seed)
    opposite = {"better": "worse", "worse": "better", "undecided": "undecided"}

    one, other = summarize(spec, arms), summarize(replace(spec, is_increase_better=False), arms)

    assert tuple(opposite[outcome] for outcome in one.outcomes) == other.outcomes
    assert one.p_values == other.p_values


@pytest.mark.parametrize("name", ["mean", "mean with a covariate", "ratio"])
@shapes
@seeds
def test_negated_values_give_the_same_result(name: str, shape: str, seed: int) -> None:
    """Gains should grow, and losses should shrink."""
    spec = SPECS[name]
    arms = drawn(spec, shape, seed)
    negated = changed(arms, first_column(np.negative))

    one, other = summarize(spec, arms), summarize(replace(spec, is_increase_better=False), negated)

    assert one.outcomes == other.outcomes
    assert one.states == other.states
    assert one.p_values == pytest.approx(other.p_values, rel=1e-7)
    for i in (0, 1):
        assert one.numbers[f"bound_{i}"] == pytest.approx(other.numbers[f"bound_{i}"], rel=1e-7)


@shapes
@seeds
def test_events_and_non_events_give_the_same_result(shape: str, seed: int) -> None:
    arms = drawn(RATE, shape, seed)
    one = summarize(RATE, arms)
    other = summarize(replace(RATE, is_increase_better=False), changed(arms, lambda y: 1.0 - y))

    assert (one.outcomes, one.states) == (other.outcomes, other.states)
    assert one.p_values == pytest.approx(other.p_values, rel=1e-6)


@pytest.mark.parametrize("name", ["mean", "mean with a covariate", "median"])
@shapes
@seeds
def test_a_shift_of_all_values_changes_no_difference(name: str, shape: str, seed: int) -> None:
    spec = SPECS[name]
    arms = drawn(spec, shape, seed)

    assert_same(
        summarize(spec, arms),
        summarize(spec, changed(arms, first_column(lambda y: y - 1e3))),
        rel=1e-5,
    )


@pytest.mark.parametrize("name", ["proportion", "mean", "mean with a covariate", "median"])
@pytest.mark.parametrize("shape", ["one", "levels", "phases"])
@seeds
def test_arms_that_change_places_change_the_sign(name: str, shape: str, seed: int) -> None:
    spec = SPECS[name]
    control, treatment = drawn(spec, shape, seed)
    opposite = {"better": "worse", "worse": "better", "undecided": "undecided"}

    one, other = summarize(spec, (control, treatment)), summarize(spec, (treatment, control))

    assert tuple(opposite[outcome] for outcome in one.outcomes) == other.outcomes
    assert one.p_values == pytest.approx(other.p_values, rel=1e-6)
    for name_of, opposite_of in (("low", "high"), ("high", "low")):
        for reading in ("running", "final"):
            ours = one.numbers[f"{reading}_{name_of}"]
            theirs = other.numbers[f"{reading}_{opposite_of}"]
            assert ours is theirs or ours == pytest.approx(-(theirs or 0.0), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", [name for name in SPECS if name != "median"])
@pytest.mark.parametrize("shape", ["one", "phases"])
@seeds
def test_a_phase_in_two_halves_gives_nearly_the_same_result(
    name: str, shape: str, seed: int
) -> None:
    spec = SPECS[name]
    halves: list[Rows] = []
    whole: list[Rows] = []
    for rows in drawn(spec, shape, seed):
        parts = {at: np.concatenate([each, each]) for at, each in rows.items()}
        whole.append(parts)
        halves.append({Stratum(2 * at.phase + i): rows[at] for at in rows for i in (0, 1)})

    one, other = summarize(spec, (whole[0], whole[1])), summarize(spec, (halves[0], halves[1]))

    assert one.outcomes == other.outcomes
    # A bound may be near 0, so that the tolerance is relative to the width of the interval.
    reached = one.numbers["running_high"], one.numbers["running_low"]
    width = (reached[0] or 0.0) - (reached[1] or 0.0)
    assert near(one.numbers, other.numbers, 0.05, 0.01 * width)
