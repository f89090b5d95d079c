"""The canary's share: losses show in all intervals together, returning units do not."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from apps.rollouts.evidence import Arm, Interval
from apps.rollouts.sample_ratio import (
    SplitInterval,
    judge_sample_ratio,
    judge_step,
    overdispersion_of,
)
from apps.rollouts.verdicts import CheckResult, Verdict
from contract.messages import CLUSTERS, ClusterCounts

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        ([], Verdict.NO_DATA),
        ([SplitInterval(0, 0, 500)], Verdict.NO_DATA),
        ([SplitInterval(50, 950, 500)], Verdict.PASS),
        ([SplitInterval(2, 30, 500)], Verdict.INSUFFICIENT_SAMPLE),
        ([SplitInterval(1000, 9000, 500)], Verdict.FAIL),
        ([SplitInterval(0, 5000, 500)], Verdict.FAIL),
        ([SplitInterval(51_500, 950_000, 500)], Verdict.PASS),
        ([SplitInterval(3, 5000, 0)], Verdict.FAIL),
        ([SplitInterval(5000, 3, 10_000)], Verdict.FAIL),
        ([SplitInterval(5000, 0, 10_000)], Verdict.PASS),
        ([SplitInterval(50, 950, 500), SplitInterval(500, 500, 5000)], Verdict.PASS),
    ],
)
def test_sample_ratios_get_their_verdicts(intervals: list[SplitInterval], verdict: Verdict) -> None:
    result = judge_sample_ratio(intervals)

    assert result.verdict is verdict
    json.dumps(result.evidence, allow_nan=False)


def arm(units: np.ndarray, *, anonymous: int = 0) -> Arm:  # type: ignore[type-arg]
    """Return an arm that was assigned the units of these clusters, each once."""
    totals = np.bincount(units, minlength=CLUSTERS)
    clusters = {c: ClusterCounts(units=int(n), assigned=int(n)) for c, n in enumerate(totals)}
    clusters[0] = ClusterCounts(int(totals[0]), int(totals[0]) + anonymous)
    return Arm(assigned=len(units) + anonymous, clusters=clusters)


def distinct_units(*, lost: float = 0.0, anonymous: float = 0.0, step: int = 0) -> list[Interval]:
    """Return half an hour at 100/s and 5 % in which no unit returns."""
    rng = np.random.default_rng(11)
    intervals = []
    for i in range(180):
        canary, control = rng.poisson(50 * (1 - lost)), rng.poisson(950)
        sides = [
            arm(rng.integers(0, CLUSTERS, int(n * (1 - anonymous))), anonymous=int(n * anonymous))
            for n in (canary, control)
        ]
        intervals.append(Interval(step, START + timedelta(seconds=10 * i), *sides))
    return intervals


def few_users(count: int = 300, weight: float = 0.05) -> list[Interval]:
    """Return intervals of a few returning users, by chance with too many on the canary."""
    cluster = np.random.default_rng(5).integers(0, CLUSTERS, count)
    canary, control = cluster[: int(count * weight * 1.4)], cluster[int(count * weight * 1.4) :]
    return [
        Interval(0, START + timedelta(seconds=10 * i), arm(canary), arm(control))
        for i in range(180)
    ]


def judge(intervals: list[Interval], *, weight_bp: int = 500, step: int = 0) -> CheckResult:
    result = judge_step(intervals, step, weight_bp=weight_bp, steps=5)
    json.dumps(result.evidence, allow_nan=False)
    return result


@pytest.mark.parametrize("anonymous", [0.0, 0.5, 1.0])
def test_the_loss_of_a_fifth_of_the_units_shows_in_all_intervals_together(anonymous: float) -> None:
    intervals = distinct_units(lost=0.2, anonymous=anonymous)
    result = judge(intervals)
    assert result.verdict is Verdict.FAIL
    assert result.evidence["relative_deviation"] == pytest.approx(-0.2, abs=0.03)
    assert judge(intervals[:1]).verdict is not Verdict.FAIL
    assert judge(distinct_units(anonymous=anonymous)).verdict is Verdict.PASS


def test_returning_users_are_no_new_draws() -> None:
    result = judge(few_users())
    assert result.evidence["relative_deviation"] == pytest.approx(0.4)
    assert result.verdict is Verdict.PASS
    assert "units count repeatedly, equivalent to" in result.reason
    few = judge(few_users(20))
    assert few.verdict is Verdict.INSUFFICIENT_SAMPLE
    assert "too few different units" in few.reason


def test_an_interval_shared_with_the_previous_step_is_left_out() -> None:
    # An instance has counted most of stable's units in this interval already.
    skewed = arm(np.arange(400) % CLUSTERS), arm(np.arange(100) % CLUSTERS)
    before = distinct_units(step=0)
    shared = Interval(1, before[-1].started_at, *skewed)
    assert judge([*before, shared], step=1).verdict is Verdict.NO_DATA
    alone = Interval(1, before[-1].started_at + timedelta(seconds=10), *skewed)
    assert judge([*before, alone], step=1).verdict is Verdict.FAIL


def test_any_unit_on_a_version_of_weight_0_is_a_leak() -> None:
    leak = Interval(0, START, arm(np.arange(1)), arm(np.arange(30)))
    assert judge([leak], weight_bp=0).verdict is Verdict.FAIL


def test_intervals_without_clusters_are_judged_by_the_fullest_one() -> None:
    rows = [(40, 960), (60, 1_140), (45, 955)]
    old = [
        Interval(0, START + timedelta(seconds=i), Arm(assigned=a), Arm(assigned=b))
        for i, (a, b) in enumerate(rows)
    ]
    result = judge(old)
    assert (result.evidence["observed"], result.evidence["n"]) == (60, 1_200)
    assert judge([]).verdict is Verdict.NO_DATA


def test_the_dispersion_follows_from_repeated_units() -> None:
    rng = np.random.default_rng(3)
    visits = rng.integers(1, 40, 20_000)
    runs = [
        np.bincount(rng.integers(0, CLUSTERS, visits.size), weights=visits, minlength=CLUSTERS)
        for _ in range(200)
    ]
    dispersion = overdispersion_of(np.array(runs), np.zeros(200))
    assert dispersion.mean() == pytest.approx((visits**2).sum() / visits.sum(), rel=0.05)
    mixed = overdispersion_of(np.array(runs), np.full(200, float(visits.sum())))
    assert mixed.mean() == pytest.approx((dispersion.mean() + 1.0) / 2.0, rel=0.05)
