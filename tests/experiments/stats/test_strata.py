"""Arms with different shares of the units over phases are compared within each phase."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import pytest
from scipy import stats

from apps.experiments.stats.breakdown import break_down
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import State, fisher_p
from apps.experiments.stats.data import (
    ArmData,
    ArmSpec,
    ExperimentData,
    MetricData,
    MetricSpec,
    Phase,
    Stratum,
)
from apps.experiments.stats.estimates import compare, estimate
from apps.experiments.stats.report import make_report
from apps.experiments.stats.shapes import Report
from apps.experiments.stats.strata_rates import Rates, exact_p, gain_bounds_of

RATE = MetricSpec("clicked", "primary", "proportion")
MEAN = replace(RATE, kind="mean")
CUPED = replace(MEAN, has_covariate=True)
RATIO = replace(RATE, kind="ratio")
RATIO_CUPED = replace(RATIO, has_covariate=True)
SPECS = [RATE, MEAN, CUPED, RATIO, RATIO_CUPED]
# Units of control and treatment in two phases; the second one has other values.
UNITS = {0: (4_500, 500), 1: (5_000, 5_000)}


def of(*columns: Any) -> Comoments:
    return Comoments.of(np.column_stack(columns))


def rate(n: int, events: int) -> Comoments:
    p = events / n if n else 0.0
    return Comoments(n, (p,), (n * p * (1.0 - p),))


def arm(parts: dict[Any, Comoments]) -> ArmData:
    strata = {at if isinstance(at, Stratum) else Stratum(at): c for at, c in parts.items()}
    return ArmData(reduce(Comoments.merge, parts.values()), strata=strata)


def draw(spec: MetricSpec, rng: np.random.Generator, n: int, at: float, lift: float) -> Comoments:
    """Return units with values around `at` and a covariate that explains most of the variance."""
    if spec.kind == "proportion":
        return of((rng.random(n) < 0.05 * at + lift).astype(float))
    x, d = rng.normal(10.0 * at, 2.0, n), rng.poisson(5.0 * at, n) + 1.0
    y = x + rng.normal(lift, 1.0, n)
    if spec.kind == "mean":
        return of(*((y, x) if spec.has_covariate else (y,)))
    past = rng.poisson(5.0 * at, n) + 1.0
    columns = (y * d, d, x * past, past)
    return of(*(columns if spec.has_covariate else columns[:2]))


def arms(spec: MetricSpec, seed: int = 1, lift: float = 0.0) -> tuple[ArmData, ArmData]:
    rng = np.random.default_rng(seed)
    drawn = [
        {phase: draw(spec, rng, units[i], 1.0 + phase, lift * i) for phase, units in UNITS.items()}
        for i in (0, 1)
    ]
    return arm(drawn[0]), arm(drawn[1])


@pytest.mark.parametrize("spec", SPECS)
def test_a_drift_between_phases_gives_no_difference(spec: MetricSpec) -> None:
    a, b = arms(spec)

    pooled = compare(spec, a.comoments, b.comoments).difference
    difference = estimate(spec, a, b).difference

    assert pooled.state is difference.state is State.OK
    if not spec.has_covariate:
        assert abs(pooled.effect / pooled.standard_error) > 4.0
    assert abs(difference.effect / difference.standard_error) < 2.5


@pytest.mark.parametrize("spec", SPECS)
def test_a_difference_in_each_phase_is_one(spec: MetricSpec) -> None:
    lift = {"proportion": 0.03, "mean": 0.5, "ratio": 0.5}[spec.kind]
    a, b = arms(spec, 2, lift)

    estimated = estimate(spec, a, b)

    assert estimated.difference.effect == pytest.approx(
        lift, abs=4.0 * estimated.difference.standard_error
    )
    assert estimated.difference.effect / estimated.difference.standard_error > 4.0
    assert estimated.n == sum(map(sum, UNITS.values()))
    assert (estimated.variance_reduction is not None) == spec.has_covariate


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("levels", [("",), ("new", "old")])
def test_with_one_phase_nothing_is_different(spec: MetricSpec, levels: tuple[str, ...]) -> None:
    rng = np.random.default_rng(3)
    parts = [{lv: draw(spec, rng, 400, i + 1.0, 0.0) for i, lv in enumerate(levels)} for _ in "ab"]
    plain = [arm({Stratum(0, lv): c for lv, c in part.items()}) for part in parts]
    empty = Comoments.empty(spec.width)
    begun = [replace(p, strata={**p.strata, Stratum(1, "new"): empty}) for p in plain]

    assert estimate(spec, *begun) == estimate(spec, *plain)
    if levels == ("",):
        assert estimate(spec, *plain) == compare(spec, *(p.comoments for p in plain))


def test_means_are_averaged_by_hand() -> None:
    rng = np.random.default_rng(4)
    values = [[rng.normal(phase, 1 + phase, n) for phase, n in ((0, 300), (1, 80))],
              [rng.normal(phase, 1 + phase, n) for phase, n in ((0, 50), (1, 90))]]  # fmt: skip
    difference = estimate(
        MEAN, *(arm(dict(enumerate(map(of, part)))) for part in values)
    ).difference

    weights = np.array([300 * 50 / 350, 80 * 90 / 170])
    weights /= weights.sum()
    d = sum(w * (b.mean() - a.mean()) for w, a, b in zip(weights, *values, strict=True))
    noise = [w**2 * y.var(ddof=1) / len(y) for part in values
             for w, y in zip(weights, part, strict=True)]  # fmt: skip
    freedom = [len(y) - 1 for part in values for y in part]
    assert difference.effect == pytest.approx(d)
    assert difference.standard_error == pytest.approx(math.sqrt(sum(noise)))
    df = sum(noise) ** 2 / sum(v**2 / f for v, f in zip(noise, freedom, strict=True))
    assert difference.df == pytest.approx(df)


def test_rates_are_tested_as_mantel_and_haenszel_did() -> None:
    a, b = arm({0: rate(900, 90), 1: rate(500, 200)}), arm({0: rate(100, 15), 1: rate(500, 230)})
    difference = estimate(RATE, a, b).difference

    gained = variance = 0.0
    for (n0, e0), (n1, e1) in (((900, 90), (100, 15)), ((500, 200), (500, 230))):
        n, m = n0 + n1, e0 + e1
        gained += e1 - n1 * m / n
        variance += n0 * n1 * m * (n - m) / (n * n * (n - 1))
    assert difference.effect / difference.standard_error == pytest.approx(
        gained / math.sqrt(variance)
    )
    assert difference.test == "mantel-haenszel"


def counted(rows: list[tuple[int, int, int, int]]) -> Rates:
    return Rates(*(np.array(column, dtype=float) for column in zip(*rows, strict=True)))


def test_the_exact_test_is_the_sum_over_all_tables() -> None:
    rows = [(12, 2, 7, 3), (9, 1, 15, 4), (5, 0, 3, 1)]
    chances: dict[int, float] = {}
    laws = [stats.hypergeom(n0 + n1, e0 + e1, n1) for n0, e0, n1, e1 in rows]
    for events in itertools.product(*(range(n1 + 1) for _, _, n1, _ in rows)):
        chance = math.prod(law.pmf(e) for law, e in zip(laws, events, strict=True))
        chances[sum(events)] = chances.get(sum(events), 0.0) + chance
    observed = chances[sum(row[3] for row in rows)]

    expected = sum(chance for chance in chances.values() if chance <= observed * (1 + 1e-7))
    assert exact_p(counted(rows)) == pytest.approx(expected)


@pytest.mark.parametrize("row", [(1_000, 12, 1_000, 0), (20, 3, 15, 9), (50_000, 3, 400, 8)])
def test_the_exact_test_of_one_stratum_is_fishers(row: tuple[int, int, int, int]) -> None:
    assert exact_p(counted([row])) == pytest.approx(fisher_p(*row), rel=1e-9)


def test_a_phase_with_too_few_units_of_an_arm_is_left_out_and_counted() -> None:
    a, b = arms(MEAN)
    rng = np.random.default_rng(5)
    more = [rng.normal(99.0, 1.0, n) for n in (700, 1)]
    longer = [
        replace(p, comoments=p.comoments.merge(of(m)), strata={**p.strata, Stratum(2): of(m)})
        for p, m in zip((a, b), more, strict=True)
    ]
    estimated = estimate(MEAN, *longer)

    assert estimated.difference == estimate(MEAN, a, b).difference
    assert estimated.phase_summary is not None
    assert (estimated.phase_summary.phases, estimated.phase_summary.left_out) == (2, 701)
    assert estimated.n == a.comoments.n + b.comoments.n


def test_if_only_one_phase_has_both_arms_only_it_counts() -> None:
    a, b = arms(MEAN)
    alone = arm({0: a.strata[Stratum(0)]}), arm({0: b.strata[Stratum(0)]})
    estimated = estimate(MEAN, a, alone[1])

    assert estimated.difference == compare(MEAN, *(each.comoments for each in alone)).difference
    assert estimated.phase_summary is not None
    assert (estimated.phase_summary.phases, estimated.phase_summary.left_out) == (1, 5_000)


def test_arms_without_a_common_phase_are_not_compared() -> None:
    a, b = arms(MEAN)
    apart = arm({0: a.strata[Stratum(0)]}), arm({1: b.strata[Stratum(1)]})
    estimated = estimate(MEAN, *apart)

    assert estimated.difference.state is State.NOT_ENOUGH_DATA
    assert estimated.phase_summary is not None
    assert (estimated.phase_summary.phases, estimated.phase_summary.left_out, estimated.n) == (
        0,
        9_500,
        0,
    )


def test_values_that_differ_only_between_phases_have_no_variance() -> None:
    constant = [arm({0: of(np.zeros(n)), 1: of(np.ones(m))}) for n, m in ((900, 500), (100, 500))]

    assert estimate(MEAN, *constant).difference.state is State.NO_VARIANCE
    assert estimate(RATE, *constant).difference.state is State.NO_VARIANCE


def test_small_levels_of_a_phase_are_counted_together_by_their_size_alone() -> None:
    rng = np.random.default_rng(6)
    parts: list[dict[Any, Comoments]] = [{}, {}]
    for phase, level in itertools.product((0, 1), range(12)):
        # The smaller arm expects two or three units of each level: none, of some.
        for part, n in zip(parts, (20, rng.integers(0, 6)), strict=True):
            part[Stratum(phase, f"l{level}")] = of(rng.normal(level, 1.0, n))
    for phase, (part, n) in itertools.product((0, 1), zip(parts, (900, 100), strict=True)):
        part[Stratum(phase, "large")] = of(rng.normal(40.0, 1.0, n))
    estimated = estimate(MEAN, arm(parts[0]), arm(parts[1]))

    assert estimated.phase_summary is not None
    assert estimated.phase_summary.left_out == 0
    assert abs(estimated.difference.effect / estimated.difference.standard_error) < 3.0


def test_a_ratio_is_post_stratified_by_level() -> None:
    rng = np.random.default_rng(7)
    parts = [
        {Stratum(0, lv): draw(RATIO, rng, n, at, 0.0) for lv, at, n in (("x", 1, n), ("y", 2, m))}
        for n, m in ((700, 300), (300, 700))
    ]
    a, b = (arm(part) for part in parts)

    difference = estimate(RATIO, a, b).difference
    pooled = compare(RATIO, a.comoments, b.comoments).difference

    assert pooled.effect / pooled.standard_error > 8.0
    assert abs(difference.effect / difference.standard_error) < 3.0
    assert difference.standard_error < pooled.standard_error


def test_rare_events_are_bounded_in_each_phase() -> None:
    rates = counted([(9_000, 2, 1_000, 0), (5_000, 1, 5_000, 2)])
    low, high = gain_bounds_of(rates, alpha=0.05, is_increase_better=False, is_final=True)

    assert low < 0.0 < high
    only = counted([(5_000, 1, 5_000, 2)])
    alone = gain_bounds_of(only, alpha=0.05, is_increase_better=False, is_final=True)
    assert high - low > alone[1] - alone[0]


def report(metric: MetricData, **options: Any) -> Report:
    specs = (ArmSpec("a", 5_000, is_control=True), ArmSpec("b", 5_000))
    exposed = {name: arm_data.comoments.n for name, arm_data in metric.arms.items()}
    phases = tuple(
        Phase({"a": a, "b": b}, {"a": a / (a + b), "b": b / (a + b)}) for a, b in UNITS.values()
    )
    data = ExperimentData(specs, exposed, phases, (metric,))
    return make_report(data, alpha=0.05, planned_units=10_000, **options)


def phased_rates(*, lift: int = 0) -> dict[str, ArmData]:
    return {"a": arm({0: rate(4_500, 225), 1: rate(5_000, 500)}),
            "b": arm({0: rate(500, 25 + lift), 1: rate(5_000, 500 + 10 * lift)})}  # fmt: skip


def test_a_report_says_what_was_compared_and_contradicts_no_number() -> None:
    spec = replace(RATE, mann_whitney=True)
    metric = report(MetricData(spec, phased_rates())).primary
    compared = metric.comparisons[0]

    assert (compared.outcome, compared.basis, compared.phases) == ("undecided", "phases", 2)
    assert compared.difference == pytest.approx(0.0, abs=1e-12)
    assert compared.value == pytest.approx(compared.control_value)
    assert "9.24% against 9.24%" in metric.verdict
    assert "2 weight phases" in metric.verdict
    assert compared.mann_whitney_p is None
    assert compared.bayes is not None
    assert compared.bayes.chance_to_beat == pytest.approx(0.5)


def test_a_difference_over_phases_is_detected() -> None:
    metric = report(MetricData(RATE, phased_rates(lift=12)), is_final=True).primary

    assert metric.winner == "b"
    assert "b is better than a" in metric.verdict
    assert metric.comparisons[0].test == "mantel-haenszel"


def test_levels_of_a_breakdown_are_compared_inside_phases() -> None:
    levels = {"ch": phased_rates(), "de": phased_rates(lift=15)}
    metric = MetricData(RATE, phased_rates(), breakdowns={"x-country": levels})
    specs = (ArmSpec("a", 5_000, is_control=True), ArmSpec("b", 5_000))
    (table,) = break_down(metric, specs, 0.025, 10_000)

    alike, better = (level.comparisons[0] for level in table.levels)
    assert not alike.is_significant
    assert alike.difference == pytest.approx(0.0, abs=1e-12)
    assert better.is_significant


@pytest.mark.parametrize("events", [(0, 0), (3, 2)])
def test_a_guardrail_of_rare_events_needs_proof_in_each_phase(events: tuple[int, int]) -> None:
    spec = replace(RATE, role="guardrail", margin=0.01, is_increase_better=False)
    arms = {"a": arm({0: rate(4_500, events[0]), 1: rate(5_000, 0)}),
            "b": arm({0: rate(500, 0), 1: rate(5_000, events[1])})}  # fmt: skip
    primary = MetricData(RATE, phased_rates())
    specs = (ArmSpec("a", 5_000, is_control=True), ArmSpec("b", 5_000))
    data = ExperimentData(specs, {"a": 9_500, "b": 5_500}, (), (primary, MetricData(spec, arms)))
    comparison = make_report(data, alpha=0.05, planned_units=10_000).metrics[1].comparisons[0]

    assert comparison.non_inferiority is not None
    assert comparison.non_inferiority.state == "not-worse"
    assert comparison.non_inferiority.bound is not None
    assert comparison.non_inferiority.bound > -0.01


def spend(n: int, buyers: int, seed: int) -> Comoments:
    values = np.zeros(n)
    values[:buyers] = np.random.default_rng(seed).lognormal(3.0, 1.0, buyers)
    return of(values)


def test_rare_values_over_phases_are_corrected_for_skewness_or_have_no_reading() -> None:
    few = [arm({0: spend(9_000, 90, 1), 1: spend(5_000, 25, 2)}),
           arm({0: spend(100, 0, 3), 1: spend(150, 2, 4)})]  # fmt: skip
    difference = estimate(MEAN, *few, names=("old", "new")).difference
    assert difference.state is State.NOT_ENOUGH_DATA
    assert "new expects only" in difference.reason

    enough = [arm({0: spend(9_000, 900, 1), 1: spend(5_000, 250, 2)}),
              arm({0: spend(1_000, 95, 3), 1: spend(1_500, 80, 4)})]  # fmt: skip
    difference = estimate(MEAN, *enough).difference
    assert difference.state is State.OK
    assert difference.skewness < 0.0


def test_values_that_an_arm_hardly_expects_in_its_phases_are_not_read() -> None:
    """All phases together expect enough; but nearly all are in the phase without treatment."""
    both = [arm({0: spend(9_000, 2_000, 1), 1: spend(9_000, 9, 2)}),
            arm({0: spend(3, 1, 3), 1: spend(2_000, 2, 4)})]  # fmt: skip
    difference = estimate(MEAN, *both, names=("old", "new")).difference

    assert difference.state is State.NOT_ENOUGH_DATA
    assert "by its phases" in difference.reason
