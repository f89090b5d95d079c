"""The betting test: exact expectations, independence from shares, and the bars of its method."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from apps.rollouts import eprocess
from apps.rollouts.checks import series_of
from apps.rollouts.comparison import Comparison, Series
from apps.rollouts.eprocess import BucketCounts, Counts
from apps.rollouts.segments import stakes_of
from bench import decisions_rules as decisions

MARGIN = 0.01


def compare(buckets: list[BucketCounts]) -> Comparison:
    return Comparison.of(series_of(buckets), margin=MARGIN)


@st.composite
def bucket(draw: st.DrawFn, n_max: int = 10**7) -> BucketCounts:
    canary_n, control_n = draw(st.integers(0, n_max)), draw(st.integers(0, n_max))
    return BucketCounts(
        canary_n, draw(st.integers(0, canary_n)), control_n, draw(st.integers(0, control_n))
    )


@pytest.mark.parametrize("counts", [(-1, 0, 5, 0), (5, 6, 5, 0), (5, 0, 5, 6), (5, 0, -5, 0)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="events of"):
        BucketCounts(*counts)


def test_counts_that_are_not_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="integers"):
        BucketCounts(5.0, 0, 5, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.01, math.nan])
def test_a_margin_outside_0_and_1_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="margin"):
        Comparison.of(series_of([BucketCounts(5, 0, 5, 0)]), margin=margin)


def test_a_bucket_with_an_empty_side_changes_no_evidence() -> None:
    with_both = [BucketCounts(50, 3, 950, 9), BucketCounts(50, 2, 950, 11)]
    empty = [BucketCounts(0, 0, 900, 9), BucketCounts(40, 40, 0, 0)]

    compared = compare([*with_both, *empty])

    before, after = compared.look(2), compared.look(4)
    assert before.margin.log_e == pytest.approx(after.margin.log_e)
    assert before.rates(before.zero)[0] == after.rates(after.zero)[0] == 0.05


@pytest.mark.parametrize(
    ("n1", "n0", "p1", "p0"),
    [(3, 40, 0.01, 0.01), (20, 20, 0.05, 0.05), (10, 30, 0.21, 0.2), (5, 9, 0.001, 0.3)],
)
def test_no_bet_gains_on_average_while_its_null_holds(
    n1: int, n0: int, p1: float, p0: float
) -> None:
    tables = np.array(list(itertools.product(range(n1 + 1), range(n0 + 1))), dtype=float)
    chance = binom.pmf(tables[:, 0], n1, p1) * binom.pmf(tables[:, 1], n0, p0)
    ones = np.ones((len(tables), 1), dtype=np.float64)
    columns = (float(n1) * ones, tables[:, :1], float(n0) * ones, tables[:, 1:])
    counts = Counts(*(column[..., None] for column in columns))

    for bets in (eprocess.RARE, eprocess.FREQUENT):
        gains = eprocess.factors(counts, margin=MARGIN, bets=bets)
        assert (chance @ np.exp(gains.margin[:, 0]) <= 1.0 + 1e-9).all()
        if p1 <= p0:
            assert (chance @ np.exp(gains.zero[:, 0]) <= 1.0 + 1e-9).all()


@pytest.mark.parametrize(("p0", "w"), [(0.0, 0.5), (0.01, 0.05), (0.3, 0.9), (0.9, 0.01)])
def test_the_mirror_does_not_gain_on_average_at_exactly_the_margin(p0: float, w: float) -> None:
    n1, n0 = max(1, round(60 * w)), max(1, round(60 * (1 - w)))
    tables = np.array(list(itertools.product(range(n1 + 1), range(n0 + 1))), dtype=float)
    chance = binom.pmf(tables[:, 0], n1, p0 + MARGIN) * binom.pmf(tables[:, 1], n0, p0)
    ones = np.ones((len(tables), 1))

    columns = (n1 * ones, tables[:, :1], n0 * ones, tables[:, 1:])
    gains = eprocess.factors(Counts(*(column[..., None] for column in columns)), margin=MARGIN)

    assert (chance @ np.exp(gains.mirror[:, 0]) <= 1.0 + 1e-9).all()


@given(bucket(n_max=30), st.sampled_from([0.01, 0.05, 0.5]), st.floats(1e-9, 1.0))
def test_bets_on_quiet_units_do_not_gain_at_equal_rates(
    past: BucketCounts, usual: float, rate: float
) -> None:
    n1, n0 = 7, 12
    tables = np.array(list(itertools.product(range(n1 + 1), range(n0 + 1))), dtype=float)
    chance = binom.pmf(tables[:, 0], n1, rate) * binom.pmf(tables[:, 1], n0, rate)
    before = np.full((len(tables), 1), float(past.control_n))
    errors = np.full((len(tables), 1), float(past.control_events))
    zero, ones = np.zeros_like(before), np.ones_like(before)
    # The first bucket has no canary: it only teaches the usual rate.
    columns = ((zero, n1 * ones), (zero, tables[:, :1]), (before, n0 * ones))
    canary_n, canary_events, control_n = (np.hstack(pair) for pair in columns)
    columns = (canary_n, canary_events, control_n, np.hstack((errors, tables[:, 1:])))
    counts = Counts(*(column[..., None] for column in columns))

    gains = eprocess.factors(counts, margin=0.1, expected_rate=usual, bets=eprocess.FREQUENT)

    assert (chance @ np.exp(gains.zero[:, 1]) <= 1.0 + 1e-9).all()


def test_the_bets_are_growth_optimal() -> None:
    w, p1, p0 = (np.array([[value]]) for value in (0.2, 0.05, 0.01))
    best = float(eprocess._best_bet(w, p1, p0, MARGIN)[0, 0])

    def growth(bet: float) -> float:
        hit, miss = 0.2 * 0.05, 0.8 * 0.01
        return (
            hit * math.log1p(bet * (5.0 - MARGIN))
            + miss * math.log1p(-bet * (1.25 + MARGIN))
            + (1.0 - hit - miss) * math.log1p(-bet * MARGIN)
        )

    assert growth(best) > max(growth(0.99 * best), growth(1.01 * best), 0.0)


def test_a_bet_that_cannot_grow_is_not_made() -> None:
    w, p = np.array([[0.2]]), np.array([[0.01]])

    assert eprocess._best_bet(w, p, p, MARGIN)[0, 0] == pytest.approx(0.0, abs=1e-8)


@given(st.lists(bucket(), min_size=1, max_size=6))
def test_evidence_is_finite_for_any_counts(buckets: list[BucketCounts]) -> None:
    look = compare(buckets).look(len(buckets))

    assert all(np.isfinite(each.log_e) for each in (look.margin, look.zero, look.mirror))
    canary, control = look.rates(look.zero)
    assert 0.0 <= canary <= 1.0
    assert 0.0 <= control <= 1.0


def test_bets_are_settled_slice_by_slice_as_they_would_be_at_once() -> None:
    whole = Counts(*(np.array([[value]]) for value in (50.0, 3.0, 950.0, 9.0)))
    halves = Counts(*(np.array([[value / 2] * 2]) for value in (50.0, 3.0, 950.0, 9.0)))

    for process in ("margin", "zero", "mirror"):
        at_once, cut = (
            getattr(eprocess.factors(counts, margin=MARGIN), process).sum(axis=-2)
            for counts in (whole, halves)
        )
        np.testing.assert_allclose(at_once, cut, rtol=1e-9)


def test_proof_of_safety_is_lost_when_the_canary_decays() -> None:
    healthy = [BucketCounts(50, 0, 950, 9)] * 40
    broken = [BucketCounts(50, 10, 950, 9)] * 5

    assert compare(healthy).look(40).mirror.log_e > math.log(10.0)
    assert compare(healthy + broken).look(45).mirror.log_e < 0.0


def test_the_estimate_does_not_take_a_changed_share_for_a_difference() -> None:
    buckets = [BucketCounts(50, 1, 950, 19), BucketCounts(500, 50, 500, 50)]

    canary, control = compare(buckets).rates(np.int64(0), 2)

    assert canary - control == pytest.approx(0.0, abs=0.001)
    assert 51 / 550 - 69 / 1450 > 0.04


def caught_after(before: float, after: float, looks: int) -> float:
    rng = np.random.default_rng(11)
    shares = np.full(looks, 0.05)
    counts = decisions.draw(rng, runs=700, shares=shares, control=before, canary=after)
    taken = decisions.requests_until(decisions.rolled_back(counts, 0.05), counts)
    assert np.isnan(taken).mean() < 0.01
    return float(np.nanmean(taken))


def test_three_percent_errors_are_caught_after_about_350_canary_requests() -> None:
    # A quarter of the stake is kept for later: 4 % more than with a fifth of it.
    assert 310 < caught_after(0.01, 0.03, looks=180) < 400


def test_ten_percent_errors_are_caught_after_about_45_canary_requests() -> None:
    assert 38 < caught_after(0.01, 0.10, looks=40) < 52


def test_a_healthy_canary_is_rarely_rolled_back_in_a_whole_rollout() -> None:
    rng = np.random.default_rng(12)
    shares = decisions.five_steps()
    healthy = decisions.draw(rng, runs=600, shares=shares, control=0.01, canary=0.01)
    steps = decisions.steps_of(shares)

    assert decisions.share_of_runs(decisions.rolled_back(healthy, 0.05, steps)) <= 0.02 + 0.012
    assert decisions.share_of_runs(decisions.rolled_back(healthy, 0.01, steps)) <= 0.005 + 0.006
    assert decisions.share_of_runs(decisions.threshold_rule(healthy)) > 0.85


def test_an_incident_in_both_versions_does_not_fail_the_canary() -> None:
    both = decisions.incident(np.random.default_rng(13), 300)

    assert decisions.share_of_runs(decisions.rolled_back(both, 0.05)) <= 0.04
    assert decisions.peeking_z(both, 0.05)[:, -1].mean() > 0.99


def test_counting_units_keeps_one_users_errors_from_failing_the_canary() -> None:
    requests, units = decisions.correlated_errors(np.random.default_rng(14), 400)

    assert decisions.share_of_runs(decisions.rolled_back(units, 0.05)) <= 0.04
    assert decisions.share_of_runs(decisions.rolled_back(requests, 0.05)) > 0.08


def test_a_canary_that_breaks_late_is_caught_despite_a_healthy_past() -> None:
    rate = np.where(np.arange(320) < 200, 0.01, 0.10)
    rng = np.random.default_rng(15)
    counts = decisions.draw(rng, runs=300, shares=np.full(320, 0.05), control=0.01, canary=rate)

    taken = decisions.requests_until(decisions.rolled_back(counts, 0.05), counts)

    assert np.nanmean(taken) - 200 * 250 * 0.05 < 260


@pytest.mark.parametrize("p0", [0.0005, 0.01, 0.1])
def test_a_canary_worse_by_the_margin_is_rarely_proven_safe(p0: float) -> None:
    rng = np.random.default_rng(16)
    shares = np.full(150, 0.05)
    worse = decisions.draw(
        rng, runs=600, shares=shares, control=p0, canary=p0 + MARGIN, per_look=1000
    )

    assert decisions.share_of_runs(decisions.promoted(worse)) <= 0.10 + 0.03


def test_a_share_of_one_percent_finds_three_percent_errors() -> None:
    rng = np.random.default_rng(17)
    counts = decisions.draw(rng, runs=150, shares=np.full(600, 0.01), control=0.01, canary=0.03)

    taken = decisions.requests_until(decisions.rolled_back(counts, 0.05), counts)

    bound = decisions.error_bound(0.01, 0.03, 0.01)
    assert np.isnan(taken).mean() < 0.05
    assert np.nanmean(taken) < 1.7 * bound


def test_an_equal_slice_costs_about_twice_as_many_requests() -> None:
    rng = np.random.default_rng(18)
    counts = decisions.equal_slice(rng, runs=250, looks=300, control=0.01, canary=0.03)

    taken = decisions.requests_until(decisions.rolled_back(counts, 0.05), counts)

    assert 600 < np.nanmean(taken) < 950


@pytest.mark.parametrize(("share", "bound"), [(0.05, 246), (0.5, 562)])
def test_the_information_bound_is_the_published_one(share: float, bound: int) -> None:
    assert decisions.error_bound(0.01, 0.03, share) == pytest.approx(bound, abs=1)


def test_the_evidence_is_that_of_stakes_which_enter_one_after_the_other() -> None:
    rng = np.random.default_rng(5)
    counts = decisions.draw(rng, runs=1, shares=np.full(40, 0.05), control=0.01, canary=0.02)
    series = Series(
        Counts(*(column[0, :, None] for column in decisions.columns_of(counts))),
        np.repeat([0, 1], 20),
    )
    compared = Comparison.of(series, margin=MARGIN)
    stakes, logs = stakes_of(series.steps), compared.factors.zero
    wealth, waiting = np.zeros(logs.shape[-1]), 1.0
    for k, log in enumerate(logs):
        entering = stakes.weights[stakes.starts == k].sum()
        waiting -= entering
        wealth = (wealth + entering) * np.exp(log)

    expected = math.log(wealth.mean() + waiting)
    assert compared.look(40, np.zeros(())).zero.log_e == pytest.approx(expected)


@given(st.lists(st.integers(1, 900), min_size=1, max_size=12))
def test_the_stakes_are_one_at_most_however_long_the_steps(lengths: list[int]) -> None:
    stakes = stakes_of(np.repeat(np.arange(len(lengths)), lengths))

    assert 0.75 < stakes.weights.sum() <= 1.0
    assert (stakes.weights > 0.0).all()


@pytest.mark.parametrize("bets", [eprocess.RARE, eprocess.FREQUENT])
def test_bets_that_an_earlier_look_settled_are_those_of_a_first_look(bets: eprocess.Bets) -> None:
    rng = np.random.default_rng(5)
    n1, n0 = rng.poisson(10, (40, 5)), rng.poisson(190, (40, 5))
    table = [n1, rng.binomial(n1, 0.02), n0, rng.binomial(n0, 0.01)]
    columns = [column.astype(float) for column in table]
    arguments = {"margin": MARGIN, "expected_rate": 0.02, "bets": bets}
    for now in (1, 2, 7, 7, 30, 12, 40):
        # The last intervals of a look may be pooled at the next one.
        columns[1][max(0, now - 2), 0] += now == 30
        counts = Counts(*(column[:now].copy() for column in columns))
        kept = eprocess.settled_factors(counts, **arguments)
        first = eprocess.factors(counts, **arguments)
        for name in ("margin", "zero", "mirror"):
            np.testing.assert_array_equal(getattr(kept, name), getattr(first, name))
