"""Score tests of rates and their intervals agree with published examples and other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar
from statsmodels.stats.contingency_tables import StratifiedTable
from statsmodels.stats.proportion import confint_proportions_2indep

from apps.experiments.stats.comparison import UpliftState, compare_rates, read_fixed
from apps.experiments.stats.rate_scores import RateRegion, StratifiedRateRegion

Z95 = 1.959963984540054


def region(events: int, n: int, control_events: int, control_n: int) -> RateRegion:
    return RateRegion(control_n, control_events, n, events)


# Newcombe (1998), Statistics in Medicine 17, table II: the intervals of methods 5 (Mee) and 6
# (Miettinen and Nurminen), which differ by the factor N/(N − 1) of the variance.
PUBLISHED = [
    ((56, 70, 48, 80), (0.0533, 0.3377), (0.0528, 0.3382)),
    ((9, 10, 3, 10), (0.1821, 0.8370), (0.1700, 0.8406)),
    ((10, 10, 0, 20), (0.7225, 1.0000), (0.7156, 1.0000)),
    ((0, 10, 0, 20), (-0.1611, 0.2775), (-0.1658, 0.2844)),
]


@pytest.mark.parametrize(("counts", "mee", "miettinen"), PUBLISHED)
def test_intervals_of_differences_are_the_published_ones(
    counts: tuple[int, int, int, int], mee: tuple[float, float], miettinen: tuple[float, float]
) -> None:
    total = counts[1] + counts[3]
    wider = Z95 * math.sqrt(total / (total - 1))

    assert region(*counts).limits(Z95) == pytest.approx(mee, abs=5e-5)
    assert region(*counts).limits(wider) == pytest.approx(miettinen, abs=5e-5)


def test_a_rate_of_no_event_beside_another_is_bounded_by_wilsons_interval() -> None:
    """With no event in either arm the likeliest rates at δ are δ and 0: Wilson's bound (1927)."""
    for n, control_n in ((10, 20), (37, 5), (200, 4_000)):
        low, high = region(0, n, 0, control_n).limits(Z95)

        assert high == pytest.approx(Z95**2 / (n + Z95**2), rel=1e-8)
        assert low == pytest.approx(-(Z95**2) / (control_n + Z95**2), rel=1e-8)


def test_the_test_against_a_margin_is_the_published_one() -> None:
    # 56 of 70 against 48 of 80 as in the reference output of cicalc (GSK): 1.348 at 0.1.
    rates = region(56, 70, 48, 80)

    assert float(rates.score_of(0.1)) == pytest.approx(1.348, abs=5e-4)
    assert rates.score == pytest.approx(2.650, abs=5e-4)


@pytest.mark.parametrize("counts", [(56, 70, 48, 80), (7, 34, 1, 34), (500, 1_000, 9_000, 99_000)])
def test_intervals_of_ratios_are_those_of_statsmodels(counts: tuple[int, int, int, int]) -> None:
    expected = confint_proportions_2indep(
        *counts, method="score", compare="ratio", correction=False
    )

    limits = region(*counts).uplift_limits(Z95)

    assert limits is not None
    assert np.array(limits) + 1.0 == pytest.approx(np.array(expected), rel=1e-8)


@given(
    st.integers(2, 500), st.integers(2, 50_000), st.floats(0.0, 1.0), st.floats(0.0, 1.0),
    st.floats(-0.98, 0.98),
)  # fmt: skip
@example(243, 30_797, 1.0, 1.0, 0.0)
@example(243, 30_797, 0.0, 0.0, 0.0)
def test_restricted_rates_are_the_likeliest(
    n: int, control_n: int, share: float, control_share: float, delta: float
) -> None:
    rates = region(round(n * share), n, round(control_n * control_share), control_n)

    control, treatment = (float(rate) for rate in rates.restricted(delta))

    def loss(rate: float) -> float:
        pairs = ((rate - delta, control_n, rates.control_events), (rate, n, rates.events))
        return -sum(float(stats.binom.logpmf(k, m, min(1.0, max(0.0, p)))) for p, m, k in pairs)

    low, high = max(0.0, delta), min(1.0, 1.0 + delta)
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-10})
    assert treatment - control == pytest.approx(delta, abs=1e-12)
    assert low <= treatment <= high
    # A double root, as when no unit has the event, is exact to half of the digits.
    assert treatment == pytest.approx(best.x, abs=1e-7) or loss(treatment) <= best.fun + 1e-5


@given(
    st.integers(2, 400), st.integers(2, 40_000), st.floats(0.0, 1.0), st.floats(0.0, 1.0),
    st.floats(0.5, 20.0),
)  # fmt: skip
def test_the_ends_of_an_interval_have_the_critical_score(
    n: int, control_n: int, share: float, control_share: float, critical: float
) -> None:
    rates = region(round(n * share), n, round(control_n * control_share), control_n)
    if rates.events + rates.control_events in (0, n + control_n):
        return

    low, high = rates.limits(critical)

    assert -1.0 <= low <= rates.rates[1] - rates.rates[0] <= high <= 1.0
    if low > -1.0:
        assert float(rates.score_of(low)) == pytest.approx(critical, rel=1e-4)
    if high < 1.0:
        assert float(rates.score_of(high)) == pytest.approx(-critical, rel=1e-4)


def test_the_ratio_of_a_rare_rate_has_bounds_where_fiellers_has_none() -> None:
    reading = read_fixed(compare_rates(2_000, 4, 2_000, 40), 0.05)

    assert reading.uplift_state is UpliftState.OK
    assert reading.uplift_low is not None
    assert 0.0 < reading.uplift_low < 9.0 < (reading.uplift_high or 0.0)


@pytest.mark.parametrize("shift", [0.0, 0.02])
@pytest.mark.parametrize("share", [0.5, 0.05])
def test_the_interval_covers_at_its_level_whatever_the_arms_sizes(
    share: float, shift: float
) -> None:
    rng, runs, critical = np.random.default_rng(4), 4_000, 2.2414
    n = round(20_000 * share)
    events, control = rng.binomial(n, 0.1 + shift, runs), rng.binomial(20_000 - n, 0.1, runs)
    scores = RateRegion(20_000 - n, control, n, events).score_of(shift)

    assert (np.abs(scores) <= critical).mean() == pytest.approx(0.975, abs=0.007)


def test_one_sided_limits_err_alike_on_both_sides_where_events_are_few() -> None:
    rng, runs, n, control_n = np.random.default_rng(5), 1_000, 200, 19_800
    events, control = rng.binomial(n, 0.03, runs), rng.binomial(control_n, 0.02, runs)
    bounds = [
        region(int(a), n, int(b), control_n).one_sided_limits(Z95)
        for a, b in zip(events, control, strict=True)
    ]
    above = np.mean([low > 0.01 for low, _ in bounds])
    below = np.mean([high < 0.01 for _, high in bounds])

    # Four standard errors of 2.5 % are 2 %.
    assert max(above, below) <= 0.025 + 0.020
    assert np.mean(RateRegion(control_n, control, n, events).score_of(0.01) > Z95) > 0.03


def strata(counts: list[tuple[int, int, int, int]]) -> StratifiedRateRegion:
    """Return strata of (control units, control events, units, events)."""
    columns = [np.array(each, dtype=float) for each in zip(*counts, strict=True)]
    weight = columns[0] * columns[2] / (columns[0] + columns[2])
    return StratifiedRateRegion(*columns, weight / weight.sum())


def test_the_stratified_score_is_mantel_and_haenszels() -> None:
    counts = [(9_000, 450, 1_000, 60), (5_000, 500, 5_000, 540)]
    tables = [np.array([[b, n - b], [a, m - a]]) for m, a, n, b in counts]

    stratified = strata(counts)

    expected = StratifiedTable(tables).test_null_odds(correction=False).statistic
    assert stratified.score == pytest.approx(math.sqrt(expected), rel=1e-9)
    low, high = stratified.uplift_limits(stratified.score - 1e-6) or (0.0, 0.0)
    assert 0.0 < low < stratified.difference / 0.075 < high


def test_one_stratum_is_the_plain_interval_but_for_its_factor() -> None:
    low, high = region(60, 1_000, 450, 9_000).limits(Z95)

    limits = strata([(9_000, 450, 1_000, 60)]).limits(Z95 * math.sqrt(9_999 / 10_000))

    assert limits == pytest.approx((low, high), rel=1e-6)


def test_one_sided_limits_of_one_stratum_are_the_plain_ones_but_for_the_factor() -> None:
    plain = region(9, 200, 380, 19_800).one_sided_limits(Z95)

    assert strata([(19_800, 380, 200, 9)]).one_sided_limits(Z95) == pytest.approx(plain, rel=1e-3)


def test_one_sided_limits_of_strata_err_alike_where_one_arm_has_few_events() -> None:
    rng, runs, margin = np.random.default_rng(7), 600, 0.01
    rates, sizes = (0.02, 0.03), ((9_900, 100), (9_900, 100))
    above = plain = 0
    for _ in range(runs):
        rows = [
            (m, rng.binomial(m, p), n, rng.binomial(n, p + margin))
            for p, (m, n) in zip(rates, sizes, strict=True)
        ]
        above += strata(rows).one_sided_limits(Z95)[0] > margin
        plain += strata(rows).limits(Z95)[0] > margin

    # Two standard errors of 2.5 % are 1.3 %.
    assert above / runs <= 0.025 + 0.013
    assert plain > above


@pytest.mark.parametrize("margin", [-0.02, 0.03])
def test_a_stratified_margin_is_held_at_its_level(margin: float) -> None:
    rng, runs = np.random.default_rng(6), 1_200
    rates, sizes = ((0.05, 0.1), ((9_500, 500), (7_000, 3_000)))
    beyond = [0, 0]
    for _ in range(runs):
        rows = [
            (m, rng.binomial(m, p), n, rng.binomial(n, p + margin))
            for p, (m, n) in zip(rates, sizes, strict=True)
        ]
        low, high = strata(rows).limits(Z95)
        beyond = [beyond[0] + (low > margin), beyond[1] + (high < margin)]

    assert max(beyond) / runs <= 0.025 + 0.018
