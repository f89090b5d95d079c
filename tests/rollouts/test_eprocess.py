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
from apps.rollouts.eprocess import LATE_STAKE, BucketCounts, Counts, _wealth, evidence
from bench import decisions_rules as decisions

MARGIN = 0.01


@st.composite
def bucket(draw: st.DrawFn, n_max: int = 10**7) -> BucketCounts:
    canary_n, control_n = draw(st.integers(0, n_max)), draw(st.integers(0, n_max))
    return BucketCounts(
        canary_n, draw(st.integers(0, canary_n)), control_n, draw(st.integers(0, control_n))
    )


@pytest.mark.parametrize("counts", [(-1, 0, 5, 0), (5, 6, 5, 0), (5, 0, 5, 6), (5, 0, -5, 0)])
def test_it_refuses_impossible_counts(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="events of"):
        BucketCounts(*counts)


def test_it_refuses_counts_that_are_not_integers() -> None:
    with pytest.raises(ValueError, match="integers"):
        BucketCounts(5.0, 0, 5, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.01, math.nan])
def test_it_refuses_a_margin_outside_0_and_1(margin: float) -> None:
    with pytest.raises(ValueError, match="margin"):
        evidence([BucketCounts(5, 0, 5, 0)], margin=margin)


def test_it_says_nothing_without_buckets() -> None:
    found = evidence([], margin=MARGIN)

    assert (found.log_margin, found.log_zero, found.log_mirror) == (0.0, 0.0, 0.0)
    assert found.difference is None


def test_a_bucket_with_an_empty_side_changes_no_evidence() -> None:
    with_both = [BucketCounts(50, 3, 950, 9), BucketCounts(50, 2, 950, 11)]
    empty = [BucketCounts(0, 0, 900, 9), BucketCounts(40, 40, 0, 0)]

    counts = eprocess.counts_of([*with_both, *empty])
    paths = eprocess.follow(counts, margin=MARGIN)

    assert paths.margin[1] == pytest.approx(paths.margin[3])
    assert paths.canary_rate[3] == paths.canary_rate[1] == 0.05


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
    counts = Counts(float(n1) * ones, tables[:, :1], float(n0) * ones, tables[:, 1:])

    for bets in (eprocess.RARE, eprocess.FREQUENT):
        gains = eprocess.follow(counts, margin=MARGIN, bets=bets)
        assert chance @ np.exp(gains.margin[:, 0]) <= 1.0 + 1e-9
        if p1 <= p0:
            assert chance @ np.exp(gains.zero[:, 0]) <= 1.0 + 1e-9


@pytest.mark.parametrize(("p0", "w"), [(0.0, 0.5), (0.01, 0.05), (0.3, 0.9), (0.9, 0.01)])
def test_the_mirror_does_not_gain_on_average_at_exactly_the_margin(p0: float, w: float) -> None:
    n1, n0 = max(1, round(60 * w)), max(1, round(60 * (1 - w)))
    tables = np.array(list(itertools.product(range(n1 + 1), range(n0 + 1))), dtype=float)
    chance = binom.pmf(tables[:, 0], n1, p0 + MARGIN) * binom.pmf(tables[:, 1], n0, p0)
    ones = np.ones((len(tables), 1))

    paths = eprocess.follow(
        Counts(n1 * ones, tables[:, :1], n0 * ones, tables[:, 1:]), margin=MARGIN
    )

    assert chance @ np.exp(paths.mirror[:, 0]) <= 1.0 + 1e-9


@given(bucket(n_max=30), st.sampled_from([0.01, 0.05, 0.5]), st.floats(1e-9, 1.0))
def test_bets_on_quiet_units_do_not_gain_at_equal_rates(
    past: BucketCounts, usual: float, rate: float
) -> None:
    n1, n0 = 7, 12
    tables = np.array(list(itertools.product(range(n1 + 1), range(n0 + 1))), dtype=float)
    chance = binom.pmf(tables[:, 0], n1, rate) * binom.pmf(tables[:, 1], n0, rate)
    before = np.tile(eprocess.counts_of([past]).control_n, (len(tables), 1))
    errors = np.tile(eprocess.counts_of([past]).control_events, (len(tables), 1))
    zero, ones = np.zeros_like(before), np.ones_like(before)
    # The first bucket has no canary: it only teaches the usual rate.
    columns = ((zero, n1 * ones), (zero, tables[:, :1]), (before, n0 * ones))
    canary_n, canary_events, control_n = (np.hstack(pair) for pair in columns)
    counts = Counts(canary_n, canary_events, control_n, np.hstack((errors, tables[:, 1:])))

    paths = eprocess.follow(counts, margin=0.1, expected_rate=usual, bets=eprocess.FREQUENT)

    assert chance @ np.exp(paths.zero[:, 1]) <= 1.0 + 1e-9


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


@given(st.lists(bucket(), max_size=6))
def test_evidence_is_finite_for_any_counts(buckets: list[BucketCounts]) -> None:
    found = evidence(buckets, margin=MARGIN)

    numbers = (found.log_margin, found.log_zero, found.log_zero_beyond, found.log_mirror)
    assert all(math.isfinite(number) for number in numbers)
    assert found.difference is None or -1.0 <= found.difference <= 1.0


@given(st.lists(bucket(n_max=500), min_size=2, max_size=8))
def test_evidence_for_a_rollback_once_reached_stays(buckets: list[BucketCounts]) -> None:
    earlier = evidence(buckets[:-1], margin=MARGIN)
    later = evidence(buckets, margin=MARGIN)

    assert later.log_margin >= earlier.log_margin - 1e-9
    assert later.log_zero >= earlier.log_zero - 1e-9
    assert later.log_zero_beyond >= earlier.log_zero_beyond - 1e-9


def test_proof_of_safety_is_lost_when_the_canary_decays() -> None:
    healthy = [BucketCounts(50, 0, 950, 9)] * 40
    broken = [BucketCounts(50, 10, 950, 9)] * 5

    assert evidence(healthy, margin=MARGIN).log_mirror > math.log(10.0)
    assert evidence(healthy + broken, margin=MARGIN).log_mirror < 0.0


def test_the_estimate_does_not_take_a_changed_share_for_a_difference() -> None:
    buckets = [BucketCounts(50, 1, 950, 19), BucketCounts(500, 50, 500, 50)]

    found = evidence(buckets, margin=MARGIN)

    assert found.difference == pytest.approx(0.0, abs=0.001)
    assert found.canary_events / found.canary_n - found.control_events / found.control_n > 0.04


def caught_after(before: float, after: float, looks: int) -> float:
    rng = np.random.default_rng(11)
    shares = np.full(looks, 0.05)
    counts = decisions.draw(rng, runs=700, shares=shares, control=before, canary=after)
    taken = decisions.requests_until(decisions.rolled_back(counts, 0.05), counts)
    assert np.isnan(taken).mean() < 0.01
    return float(np.nanmean(taken))


def test_three_percent_errors_are_caught_after_about_350_canary_requests() -> None:
    assert 300 < caught_after(0.01, 0.03, looks=180) < 390


def test_ten_percent_errors_are_caught_after_about_45_canary_requests() -> None:
    assert 38 < caught_after(0.01, 0.10, looks=40) < 52


def test_a_healthy_canary_is_rarely_rolled_back_in_a_whole_rollout() -> None:
    rng = np.random.default_rng(12)
    shares = decisions.five_steps()
    healthy = decisions.draw(rng, runs=1500, shares=shares, control=0.01, canary=0.01)

    assert decisions.share_of_runs(decisions.rolled_back(healthy, 0.05)) <= 0.02 + 0.01
    assert decisions.share_of_runs(decisions.rolled_back(healthy, 0.01)) <= 0.005 + 0.004
    assert decisions.share_of_runs(decisions.threshold_rule(healthy)) > 0.85


def test_an_incident_in_both_versions_does_not_condemn_the_canary() -> None:
    both = decisions.incident(np.random.default_rng(13), 500)

    assert decisions.share_of_runs(decisions.rolled_back(both, 0.05)) <= 0.04
    assert decisions.peeking_z(both, 0.05)[:, -1].mean() > 0.99


def test_counting_units_keeps_one_users_errors_from_condemning_the_canary() -> None:
    requests, units = decisions.correlated_errors(np.random.default_rng(14), 400)

    assert decisions.share_of_runs(decisions.rolled_back(units, 0.05)) <= 0.04
    assert decisions.share_of_runs(decisions.rolled_back(requests, 0.05)) > 0.15


def test_a_canary_that_breaks_late_is_caught_in_spite_of_a_healthy_past() -> None:
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


def test_the_wealth_is_that_of_bets_which_enter_one_after_the_other() -> None:
    logs = np.random.default_rng(5).normal(-0.1, 2.0, (3, 400, 5))
    usable = np.random.default_rng(6).random((3, 400)) < 0.9
    steps = np.where(usable[..., None], logs, 0.0)
    waiting = LATE_STAKE / np.sqrt(np.arange(1.0, 402.0))
    entered, expected = np.full((3, 5), np.log1p(-LATE_STAKE)), np.empty((3, 400))
    for k in range(400):
        entered = np.logaddexp(entered, np.log(waiting[k] - waiting[k + 1])) + steps[:, k]
        mean = np.logaddexp.reduce(entered, axis=-1) - np.log(5)
        expected[:, k] = np.logaddexp(mean, np.log(waiting[k + 1]))
    np.testing.assert_allclose(_wealth(logs, usable), expected, rtol=1e-9, atol=1e-9)
