"""Rare and skewed values: no verdict with too small an arm, and the missing units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.experiments.stats.comoments import Comoments, triples
from apps.experiments.stats.comparison import Difference, Reading, State, read_fixed
from apps.experiments.stats.data import ArmData, MetricSpec, Stratum
from apps.experiments.stats.estimates import Estimate, compare, estimate
from apps.experiments.stats.sequential import read_sequential
from apps.experiments.stats.skewness import heaviest_share

Floats = NDArray[np.float64]
MEAN = MetricSpec("m", "primary", "mean")
ALPHA = 0.025


def of(*columns: Floats) -> Comoments:
    return Comoments.of(np.column_stack(columns))


def spend(n: int, buyers: int, amount: float = 20.0) -> Comoments:
    values = np.zeros(n)
    values[:buyers] = amount
    return of(values)


def welch(spec: MetricSpec, a: Comoments, b: Comoments) -> Difference:
    """Return Welch's difference, from two moments."""
    return compare(spec, replace(a, thirds=()), replace(b, thirds=())).difference


def test_an_arm_without_a_buyer_is_not_enough_data_and_says_how_many_units_are_missing() -> None:
    difference = compare(MEAN, spend(128, 0), spend(1_122, 13), ("old", "new")).difference

    assert difference.state is State.NOT_ENOUGH_DATA
    assert difference.reason == (
        "old expects only 1.3 units with a value other than 0, 3 are needed: "
        "about 170 more units in old"
    )


def test_with_the_missing_units_there_is_a_reading() -> None:
    difference = compare(MEAN, spend(128 + 170, 3), spend(round(1_122 * 298 / 128), 30)).difference

    assert difference.state is State.OK


def test_few_values_other_than_0_are_too_few_in_equal_arms_too() -> None:
    difference = compare(MEAN, spend(500, 0), spend(500, 8)).difference

    assert difference.reason == (
        "at least 10 units with a value other than 0 are needed (8): "
        "about 130 more units in control"
    )


def test_values_that_are_seldom_0_are_no_events() -> None:
    assert (
        compare(MEAN, of(np.arange(1.0, 6.0)), of(np.arange(2.0, 8.0))).difference.state is State.OK
    )


@pytest.mark.parametrize(("is_capped", "advice"), [(False, ", or the metric a cap"), (True, "")])
def test_a_skewed_metric_gives_the_missing_units_of_the_small_arm(
    is_capped: bool, advice: str
) -> None:
    rng = np.random.default_rng(3)
    arms = of(rng.lognormal(0, 2, 9_500)), of(rng.lognormal(0, 2, 500))

    difference = compare(replace(MEAN, is_capped=is_capped), *arms).difference

    assert difference.reason == (
        "the values are skewed (skewness 40.5) and treatment has only 500 units: "
        f"it needs about 900 more units{advice}"
    )


def test_equal_arms_have_the_uncorrected_reading() -> None:
    rng = np.random.default_rng(4)
    a, b = of(rng.lognormal(0, 2, 3_000)), of(rng.lognormal(0, 2, 3_000))

    ours, before = (
        read_fixed(each, ALPHA) for each in (compare(MEAN, a, b).difference, welch(MEAN, a, b))
    )

    assert ours.p_value == pytest.approx(before.p_value, rel=1e-3)
    assert ours.low == pytest.approx(before.low, rel=1e-3)


def test_values_without_skewness_are_read_by_welchs_test_in_unequal_arms_too() -> None:
    rng = np.random.default_rng(5)
    a, b = of(rng.normal(10, 3, 19_000)), of(rng.normal(10.2, 2, 1_000))

    ours, before = (
        read_fixed(each, ALPHA) for each in (compare(MEAN, a, b).difference, welch(MEAN, a, b))
    )

    assert ours.p_value == pytest.approx(before.p_value, rel=1e-3)
    assert (ours.low, ours.high) == pytest.approx((before.low, before.high), abs=2e-3)


def test_a_small_arm_without_its_large_values_has_the_spread_of_all_units() -> None:
    rng = np.random.default_rng(6)
    large = rng.exponential(1.0, 5_000)
    small = rng.exponential(1.0, 400)
    cut = np.sort(small)[:380]

    ours, before = compare(MEAN, of(large), of(cut)).difference, welch(MEAN, of(large), of(cut))

    assert ours.standard_error > before.standard_error
    assert ours.skewness < 0.0
    assert abs(ours.score) < abs(ours.effect / ours.standard_error)


def test_an_interval_excludes_0_exactly_where_p_is_below_its_level() -> None:
    rng = np.random.default_rng(7)
    for _ in range(200):
        a, b = of(rng.exponential(1.0, 900)), of(rng.exponential(rng.uniform(0.7, 1.4), 110))
        estimated = compare(MEAN, a, b)
        for reading in (sequential(estimated), read_fixed(estimated.difference, ALPHA)):
            assert reading.low is not None
            assert reading.high is not None
            assert reading.is_significant == (not reading.low <= 0.0 <= reading.high)
            assert reading.uplift_low is not None
            assert (reading.uplift_low > 0.0) == (reading.low > 0.0)


def sequential(estimated: Estimate) -> Reading:
    return read_sequential(
        estimated.difference,
        n=estimated.n,
        alpha=ALPHA,
        planned_units=2_000,
        wait_reason=estimated.wait_reason,
    )


@pytest.mark.parametrize("kind", ["ratio", "cuped", "ratio-cuped"])
def test_skewness_is_that_of_the_compared_values(kind: str) -> None:
    """Revenue is skewed; revenue per visit is not if it is the same for each visit."""
    rng = np.random.default_rng(8)
    heavy = [rng.lognormal(0, 2, n) for n in (9_500, 500)]
    arms = []
    for values in heavy:
        noise = rng.normal(10.0, 1.0, len(values)) * values
        columns = {
            "ratio": (noise, values),
            "cuped": (values + rng.normal(0, 1, len(values)), values),
        }
        four = (noise, values, noise * rng.normal(1, 0.01, len(values)), values)
        arms.append(of(*columns.get(kind, four)))
    spec = replace(MEAN, kind="mean" if kind == "cuped" else "ratio", has_covariate="cuped" in kind)

    assert compare(spec, *arms).difference.state is State.OK
    assert compare(MEAN, *map(of, heavy)).difference.state is State.NOT_ENOUGH_DATA


def test_strata_have_the_same_correction_as_whole_arms() -> None:
    arms = [
        ArmData(x.merge(y), strata={Stratum(0, "x"): x, Stratum(0, "y"): y})
        for x, y in ((spend(5_000, 60), spend(5_000, 50)), (spend(500, 1), spend(500, 2)))
    ]

    difference = estimate(MEAN, *arms).difference
    plain = [
        replace(a, strata={k: replace(v, thirds=()) for k, v in a.strata.items()}) for a in arms
    ]

    assert difference.test == "stratified-t"
    assert difference.standard_error > estimate(MEAN, *plain).difference.standard_error
    assert difference.skewness < 0.0


def test_third_moments_of_two_samples_are_those_of_both_together() -> None:
    rng = np.random.default_rng(9)
    rows = rng.lognormal(0, 1, (700, 4)) + 3.0
    whole, merged = Comoments.of(rows), Comoments.of(rows[:200]).merge(Comoments.of(rows[200:]))
    weights = (1.0, -0.3, 0.2, 0.5)
    line = rows @ np.array(weights)

    assert merged.thirds == pytest.approx(whole.thirds, rel=1e-9)
    assert merged.extremes == whole.extremes
    assert whole.linear_cube(weights) == pytest.approx(((line - line.mean()) ** 3).sum(), rel=1e-9)
    assert len(whole.thirds) == len(triples(4)) == 20


def test_third_moments_that_one_sample_lacks_are_not_known_of_both() -> None:
    known = Comoments.of(np.arange(5.0).reshape(-1, 1))

    merged = known.merge(replace(known, thirds=(), extremes=None))

    assert merged.thirds == ()
    assert merged.extremes is None
    assert compare(MEAN, merged, merged).difference.skewness == 0.0


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ([1.0] * 60 + [2_940.0], 0.98),
        ([1.0] * 60 + [40.0], None),
        ([0.0] * 18 + [5.0], None),
        ([-1.0] * 30 + [500.0], None),
    ],
)
def test_a_unit_with_most_of_its_arms_sum_is_reported(
    values: list[float], share: float | None
) -> None:
    heaviest = heaviest_share(of(np.array(values)))

    assert heaviest == (None if share is None else pytest.approx(share, abs=1e-9))
