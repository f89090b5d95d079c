"""Results equal those of scipy, statsmodels and gbstats if the method is the same.

If it is not, the test states the difference. Data are random and hard: uneven shares, few units,
heavy tails, large means with small standard deviations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from gbstats.bayesian.tests import EffectBayesianABTest, EffectBayesianConfig, GaussianPrior
from gbstats.frequentist.tests import (
    FrequentistConfig,
    SequentialConfig,
    SequentialTwoSidedTTest,
    TwoSidedTTest,
)
from gbstats.models.statistics import (
    QuantileStatistic,
    RatioStatistic,
    RegressionAdjustedStatistic,
    SampleMeanStatistic,
)
from gbstats.utils import check_srm
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportions_ztest
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from apps.experiments.stats.bayes import posterior_of_difference, posterior_of_rates
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import compare_rates, read_fixed
from apps.experiments.stats.data import ArmData, MetricSpec, Stratum
from apps.experiments.stats.estimates import Estimate, compare, estimate
from apps.experiments.stats.families import benjamini_hochberg, holm
from apps.experiments.stats.quantiles import order_statistics_of
from apps.experiments.stats.ranks import mann_whitney_p
from apps.experiments.stats.sequential import read_sequential
from apps.experiments.stats.srm import check_sample_ratio

Floats = NDArray[np.float64]
REL = 1e-6
ALPHA = 0.05


def draw(name: str, seed: int) -> tuple[Floats, Floats]:
    """Return the values of control and treatment."""
    rng = np.random.default_rng(seed)
    sizes = {"few": (7, 5), "uneven": (19_000, 1_000)}.get(name, (2_000, 2_500))
    if name == "skewed":
        return rng.lognormal(0, 2, sizes[0]), rng.lognormal(0.1, 2, sizes[1])
    if name == "large-mean":
        return rng.normal(1e7, 1, sizes[0]), rng.normal(1e7 + 0.1, 1, sizes[1])
    if name == "tiny":
        return rng.normal(3e-12, 1e-12, sizes[0]), rng.normal(3.1e-12, 1e-12, sizes[1])
    return rng.normal(10, 3, sizes[0]), rng.normal(10.2, 2, sizes[1])


CASES = ["even", "uneven", "few", "skewed", "large-mean", "tiny"]
MEAN = MetricSpec("m", "primary", "mean")
RATIO = MetricSpec("m", "primary", "ratio")
CUPED = MetricSpec("m", "primary", "mean", has_covariate=True)


def of(*columns: Floats) -> Comoments:
    """Return co-moments without third moments, as in the libraries (see also test_skewness)."""
    comoments = Comoments.of(np.column_stack(columns))
    return Comoments(comoments.n, comoments.means, comoments.products)


def theirs(values: Floats) -> SampleMeanStatistic:
    total, squares = float(values.sum()), float((values**2).sum())
    return SampleMeanStatistic(n=len(values), sum=total, sum_squares=squares)


def absolute(**more: Any) -> dict[str, Any]:
    return {"difference_type": "absolute", "alpha": ALPHA, **more}


def sequential(estimated: Estimate) -> Any:
    # Ours is tuned to half the plan; gbstats names the tuning itself.
    return read_sequential(
        estimated.difference, n=estimated.n, alpha=ALPHA, planned_units=10_000, wait_reason=None
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_means_are_those_of_scipy_and_statsmodels(case: str, seed: int) -> None:
    a, b = draw(case, seed)
    reading = read_fixed(compare(MEAN, of(a), of(b)).difference, ALPHA)

    expected = stats.ttest_ind(b, a, equal_var=False)
    interval = expected.confidence_interval(1 - ALPHA)
    between = CompareMeans(DescrStatsW(b), DescrStatsW(a))

    assert reading.p_value == pytest.approx(expected.pvalue, rel=REL)
    assert (reading.low, reading.high) == pytest.approx((interval.low, interval.high), rel=REL)
    if case != "tiny":
        low, high = between.tconfint_diff(ALPHA, usevar="unequal")
        assert (reading.low, reading.high) == pytest.approx((low, high), rel=REL)


@pytest.mark.parametrize("case", ["even", "uneven", "few", "skewed"])
def test_means_ratios_and_the_sequence_are_those_of_gbstats(case: str) -> None:
    (a, b), (c, d) = draw(case, 4), (abs(values) + 5 for values in draw(case, 5))
    for ours, left, right in (
        (compare(MEAN, of(a), of(b)), theirs(a), theirs(b)),
        (
            compare(RATIO, of(a, c), of(b, d)),
            RatioStatistic(len(a), theirs(a), theirs(c), float((a * c).sum())),
            RatioStatistic(len(b), theirs(b), theirs(d), float((b * d).sum())),
        ),
    ):
        fixed = TwoSidedTTest(left, right, FrequentistConfig(**absolute())).compute_result()
        config = SequentialConfig(**absolute(sequential_tuning_parameter=5_000))
        running = SequentialTwoSidedTTest(left, right, config).compute_result()
        reading, looked = read_fixed(ours.difference, ALPHA), sequential(ours)

        assert reading.p_value == pytest.approx(fixed.p_value, rel=REL)
        assert [reading.low, reading.high] == pytest.approx(fixed.ci, rel=REL)
        assert looked.p_value == pytest.approx(running.p_value, rel=REL)
        assert [looked.low, looked.high] == pytest.approx(running.ci, rel=REL)


@pytest.mark.parametrize("case", ["even", "uneven", "few", "skewed"])
def test_cuped_is_that_of_gbstats_with_the_same_theta(case: str) -> None:
    """Theirs takes θ over both arms as one sample, with the effect itself in it; ours inside."""
    (x, z), rng = draw(case, 6), np.random.default_rng(8)
    a, b = 0.7 * x + rng.normal(0, 1, len(x)), 0.7 * z + 0.2 + rng.normal(0, 1, len(z))
    estimated = compare(CUPED, of(a, x), of(b, z))
    inside = [np.cov(y, w) * (len(y) - 1) for y, w in ((a, x), (b, z))]
    theta = sum(m[0, 1] for m in inside) / sum(m[1, 1] for m in inside)
    adjusted = [
        RegressionAdjustedStatistic(len(y), theirs(y), theirs(w), float((y * w).sum()), theta)
        for y, w in ((a, x), (b, z))
    ]

    test = TwoSidedTTest(*adjusted, FrequentistConfig(**absolute()))
    test.stat_a.theta = test.stat_b.theta = theta
    expected = test.compute_result()
    reading = read_fixed(estimated.difference, ALPHA)

    assert estimated.difference.effect == pytest.approx(expected.expected, rel=REL)
    assert [reading.low, reading.high] == pytest.approx(expected.ci, rel=REL)
    assert estimated.variance_reduction is not None
    assert 0.0 < estimated.variance_reduction < 1.0


def test_cuped_of_ratios_is_the_delta_method_on_four_means() -> None:
    rng = np.random.default_rng(9)
    arms = [rng.gamma(4.0, 1.0, (3_000, 1)) + rng.gamma(2.0, 1.0, (3_000, 4)) for _ in range(2)]
    spec = MetricSpec("m", "primary", "ratio", has_covariate=True)
    ours = compare(spec, Comoments.of(arms[0]), Comoments.of(arms[1])).difference

    lines = []
    for arm in arms:
        y, d, x, e = arm.mean(axis=0)
        now = (arm[:, 0] - y / d * arm[:, 1]) / d
        lines.append((now, (arm[:, 2] - x / e * arm[:, 3]) / e, y / d, x / e))
    inside = [np.cov(now, then) * (len(now) - 1) for now, then, _, _ in lines]
    theta = sum(m[0, 1] for m in inside) / sum(m[1, 1] for m in inside)
    difference = (lines[1][2] - lines[0][2]) - theta * (lines[1][3] - lines[0][3])
    noise = sum(np.var(now - theta * then, ddof=1) / len(now) for now, then, _, _ in lines)

    assert ours.effect == pytest.approx(difference, rel=REL)
    assert ours.standard_error == pytest.approx(math.sqrt(noise), rel=REL)


@pytest.mark.parametrize(
    ("control", "treatment"),
    [((300, 3_000), (360, 3_000)), ((95, 19_000), (12, 1_000)), ((50_000, 10**6), (50_900, 10**6))],
)
def test_rates_are_those_of_statsmodels(
    control: tuple[int, int], treatment: tuple[int, int]
) -> None:
    (a, n_a), (b, n_b) = control, treatment
    ours = compare_rates(n_a, a, n_b, b)
    z, p_value = proportions_ztest([b, a], [n_b, n_a])

    assert ours.test == "pooled-z"
    assert ours.effect / ours.standard_error == pytest.approx(z, rel=REL)
    assert read_fixed(ours, ALPHA).p_value == pytest.approx(p_value, rel=REL)


@pytest.mark.parametrize(
    "table", [(1_000, 0, 1_000, 12), (20, 1, 20, 7), (5, 5, 6, 1), (900, 3, 100, 2), (2, 0, 2, 2)]
)
def test_small_counts_are_fishers_of_scipy(table: tuple[int, int, int, int]) -> None:
    n_a, a, n_b, b = table
    expected = stats.fisher_exact([[a, n_a - a], [b, n_b - b]]).pvalue

    ours = compare_rates(*table)

    assert ours.test == "fisher-exact"
    assert read_fixed(ours, ALPHA).p_value == pytest.approx(expected, rel=REL)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
def test_quantiles_are_those_of_gbstats(quantile: float) -> None:
    """Theirs halves an arm's interval in standard errors; of smooth values both agree nearly."""
    a, b = draw("even", 11)
    orders = [order_statistics_of(np.sort(values), quantile) for values in (a, b)]
    spec = MetricSpec("m", "primary", "quantile", quantile=quantile)
    empty = Comoments.empty(1)
    ours = estimate(spec, ArmData(empty, orders[0]), ArmData(empty, orders[1])).difference
    noise = 0.0
    for values, order in ((a, orders[0]), (b, orders[1])):
        # The interval by the binomial distribution of how many values lie below.
        covered = stats.quantile_test(values, p=quantile).confidence_interval(0.95)
        theirs = QuantileStatistic(
            order.n, order.n, quantile, order.value, covered.low, covered.high
        )
        noise += theirs.variance / (order.n - 1)

    low, high = ours.bounds(1.96)

    assert (high - low) / (2 * 1.96) == pytest.approx(math.sqrt(noise), rel=0.15)


@pytest.mark.parametrize("values", [3, 40, 2_000])
def test_mann_whitney_is_that_of_scipy_on_the_same_ties(values: int) -> None:
    rng = np.random.default_rng(values)
    a, b = rng.integers(0, values, 800), rng.integers(0, values, 900) * 1.05
    edges = np.unique(np.concatenate([a, b]))[1:]
    binned = [np.searchsorted(edges, each, side="right") for each in (a, b)]
    counts = [np.bincount(each, minlength=len(edges) + 1).tolist() for each in binned]

    expected = stats.mannwhitneyu(a, b, method="asymptotic", use_continuity=False).pvalue

    assert mann_whitney_p(*counts) == pytest.approx(expected, rel=REL)


@pytest.mark.parametrize("seed", range(5))
def test_families_are_those_of_statsmodels(seed: int) -> None:
    p_values = (np.random.default_rng(seed).random(12) ** 4).tolist()
    for ours, method in ((holm, "holm"), (benjamini_hochberg, "fdr_bh")):
        _, expected, _, _ = multipletests(p_values, ALPHA, method)
        assert ours(p_values) == pytest.approx(expected.tolist(), rel=REL)


def test_the_sample_ratio_is_that_of_scipy_and_gbstats() -> None:
    observed, weights = [5_010, 4_795, 195], [0.5, 0.48, 0.02]
    ours = check_sample_ratio(observed, [5_000, 4_800, 200])
    expected = stats.chisquare(observed, [sum(observed) * weight for weight in weights])

    assert ours.p_value == pytest.approx(expected.pvalue, rel=REL)
    assert ours.p_value == pytest.approx(check_srm(observed, weights), rel=REL)


@pytest.mark.parametrize("case", ["even", "uneven", "skewed"])
def test_the_normal_posterior_is_that_of_gbstats(case: str) -> None:
    a, b = draw(case, 12)
    difference = compare(MEAN, of(a), of(b)).difference
    prior = GaussianPrior(mean=0, variance=0.3**2, proper=True)
    config = EffectBayesianConfig(difference_type="absolute", prior_effect=prior)
    expected = EffectBayesianABTest(theirs(a), theirs(b), config).compute_result()

    ours = posterior_of_difference(
        difference.effect,
        difference.standard_error,
        difference.control_mean,
        is_increase_better=True,
    )

    assert ours is not None
    assert ours.chance_to_beat == pytest.approx(expected.chance_to_win, rel=REL)
    assert ours.expected_loss == pytest.approx(expected.risk[1], rel=REL)


def test_the_beta_posterior_is_that_of_drawn_rates() -> None:
    rng = np.random.default_rng(13)
    a, b = rng.beta(101, 901, 10**6), rng.beta(121, 881, 10**6)

    posterior = posterior_of_rates(1_000, 100, 1_000, 120, is_increase_better=True)

    assert posterior.chance_to_beat == pytest.approx((b > a).mean(), abs=0.002)
    assert posterior.expected_loss == pytest.approx(np.maximum(a - b, 0).mean(), rel=0.02)


def test_strata_are_their_weighted_differences() -> None:
    rng = np.random.default_rng(14)
    levels = {name: (rng.normal(at, 1, 300), rng.normal(at + 1, 1, 500)) for name, at in
              (("x", 0.0), ("y", 5.0), ("z", 50.0))}  # fmt: skip
    arms = [
        ArmData(of(np.concatenate([pair[i] for pair in levels.values()])),
                strata={Stratum(0, name): of(pair[i]) for name, pair in levels.items()})
        for i in (0, 1)
    ]  # fmt: skip

    difference = estimate(MEAN, *arms).difference

    third = [(b.mean() - a.mean()) / 3 for a, b in levels.values()]
    noise = sum(y.var(ddof=1) / len(y) / 9 for pair in levels.values() for y in pair)
    assert difference.effect == pytest.approx(sum(third), rel=REL)
    assert difference.standard_error == pytest.approx(math.sqrt(noise), rel=REL)


@pytest.mark.parametrize("case", ["even", "uneven", "skewed"])
def test_the_relative_interval_solves_fiellers_quadratic(case: str) -> None:
    a, b = draw(case, 15)
    difference = compare(MEAN, of(a), of(b)).difference
    reading = read_fixed(difference, ALPHA)
    assert difference.df is not None
    critical = stats.t.isf(ALPHA / 2, difference.df)
    noise = [values.var(ddof=1) / len(values) for values in (a, b)]

    for uplift in (reading.uplift_low, reading.uplift_high):
        assert uplift is not None
        ratio = 1 + uplift
        off = b.mean() - ratio * a.mean()
        assert off**2 == pytest.approx(critical**2 * (noise[1] + ratio**2 * noise[0]), rel=REL)


def test_a_hundred_million_units_keep_full_precision() -> None:
    n, mean = 10**8, 1e9
    a, b = Comoments(n, (mean,), (float(n - 1),)), Comoments(n, (mean + 1e-3,), (float(n - 1),))

    difference = compare(MEAN, a, b).difference

    assert difference.standard_error == pytest.approx(math.sqrt(2 / n), rel=1e-3)
    assert read_fixed(difference, ALPHA).p_value == pytest.approx(
        2 * stats.norm.sf(1e-3 / math.sqrt(2 / n)), rel=2e-2
    )
