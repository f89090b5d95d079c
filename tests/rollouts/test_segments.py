"""Stakes enter at fixed times; the evidence has its stake and its start."""

from __future__ import annotations

import math

import numpy as np
import pytest

from apps.rollouts.checks import CheckSettings, Frame, judge_error_rate
from apps.rollouts.comparison import Series
from apps.rollouts.eprocess import Counts
from apps.rollouts.segments import SLICES, Stakes, carry, stakes_of
from apps.rollouts.verdicts import Verdict


def series(*parts: tuple[int, float, float], steps: list[int] | None = None) -> Series:
    """Intervals of 50 canary and 950 stable units in five slices: (how many, errors, errors)."""
    rows = [
        [(10.0, canary / SLICES, 190.0, control / SLICES)] * SLICES
        for count, canary, control in parts
        for _ in range(count)
    ]
    table = np.array(rows).transpose(2, 0, 1)
    return Series(Counts(*table), np.array(steps or [0] * len(rows)))


def test_no_stakes_without_intervals() -> None:
    assert stakes_of([]).starts.size == 0


def test_each_step_has_its_own_stake_at_its_start() -> None:
    stakes = stakes_of([0] * 20 + [1] * 20)
    at = dict(zip(stakes.starts.tolist(), stakes.weights.tolist(), strict=True))
    assert at[0] > 0.75
    assert at[20] > 5 * at[26]


def test_an_instance_that_still_serves_the_step_before_begins_no_step() -> None:
    behind = [0] * 20 + [1, 0, 1, 0, 0, 1, 1, 0]
    stakes, usual = stakes_of(behind), stakes_of([0] * 20 + [1] * 8)
    np.testing.assert_array_equal(stakes.starts, usual.starts)
    np.testing.assert_array_equal(stakes.weights, usual.weights)


def test_old_proof_is_no_pass_for_a_bad_step_though_the_last_interval_is_of_the_one_before() -> (
    None
):
    """An interval of a late instance must not represent the whole step."""
    bad = series((180, 0.5, 9.5), (6, 1.5, 9.5), (1, 0.0, 9.5), steps=[0] * 180 + [1] * 6 + [0])
    result = judge_error_rate(bad, CheckSettings(), Frame(has_slices=True))
    assert result.verdict is not Verdict.PASS


def test_stakes_do_not_depend_on_later_intervals() -> None:
    short, long = stakes_of([0] * 50), stakes_of([0] * 50 + [1] * 9)
    np.testing.assert_array_equal(long.until(50).starts, short.starts)
    np.testing.assert_allclose(long.until(50).weights, short.weights)


def test_overdispersion_divides_each_bets_log_before_they_are_averaged() -> None:
    stakes = Stakes(np.array([0]), np.array([1.0]))
    gains = np.array([[2.0, -4.0]])
    carried = carry(gains, stakes, np.array([2.0]))
    assert carried.log_e == pytest.approx(math.log((math.exp(1.0) + math.exp(-2.0)) / 2))
    assert carried.gain == pytest.approx(1.0)


def test_a_late_break_has_the_numbers_since_it() -> None:
    observed = series((300, 0.5, 9.5), (15, 3.0, 9.5), steps=[0] * 300 + [1] * 15)
    result = judge_error_rate(observed, CheckSettings(), Frame(has_slices=True))
    assert result.verdict is Verdict.FAIL
    assert result.evidence["first_interval"] == 300
    assert (
        "6.0 % on the canary, 1.0 % on stable, margin 1.0 %, after 750 exposures of the canary "
        "since interval 301 (15 intervals): "
    ) in result.reason


def test_one_lost_second_is_no_proof_however_large() -> None:
    observed = series((30, 0.0, 1.0))
    observed.counts.canary_events[20, 2:4] = 10.0
    result = judge_error_rate(observed, CheckSettings(guardrails=3), Frame(has_slices=True))
    assert result.verdict is Verdict.INSUFFICIENT_SAMPLE
    assert "too few seconds" in result.reason


def test_two_lost_seconds_are_no_proof_either_and_ten_are() -> None:
    for slices, verdict in ((4, Verdict.INSUFFICIENT_SAMPLE), (SLICES, Verdict.FAIL)):
        observed = series((30, 0.0, 1.0))
        observed.counts.canary_events[29, :slices] = 10.0
        result = judge_error_rate(observed, CheckSettings(guardrails=3), Frame(has_slices=True))
        assert result.verdict is verdict
