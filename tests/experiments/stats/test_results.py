"""The whole reading: health first, one verdict, and a named state for everything that has none."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.experiments.stats.arms import Kind
from apps.experiments.stats.results import Analysis, ArmSummary, Moments, State, analyse


def rates(*arms: tuple[int, int], **more: Any) -> Analysis:
    """Control first; equal weights."""
    weight = 10_000 // len(arms)
    variants = [
        ArmSummary.of_events("ABCDEFGH"[i], weight, n, events, is_control=i == 0)
        for i, (n, events) in enumerate(arms)
    ]
    return analyse(variants, kind="proportion", **more)


def means(*arms: Moments, **more: Any) -> Analysis:
    weight = 10_000 // len(arms)
    variants = [
        ArmSummary.of_moments("ABCDEFGH"[i], weight, moments, is_control=i == 0)
        for i, moments in enumerate(arms)
    ]
    return analyse(variants, kind="mean", **more)


def test_a_clear_difference_is_a_win_with_a_sentence() -> None:
    result = rates((5000, 500), (5010, 650), planned_units=10_000)

    assert result.is_significant
    assert result.winner == "B"
    assert result.verdict.startswith("B is better than A: 13% against 10%, +2.97 points (97.5%")
    assert result.interval is not None
    assert result.interval[0] > 0.0
    assert result.uplift == pytest.approx(0.2974, abs=1e-4)


def test_the_direction_says_which_way_is_better() -> None:
    result = rates((5000, 500), (5010, 650), planned_units=10_000, direction="decrease")

    assert result.is_significant
    assert result.winner is None
    assert result.verdict.startswith("B is worse than A")


def test_while_running_the_sequential_reading_decides() -> None:
    arms = ((5000, 500), (5000, 570))

    running = rates(*arms, planned_units=10_000)
    final = rates(*arms, planned_units=10_000, is_final=True)

    assert (running.is_significant, final.is_significant) == (False, True)
    assert (running.phase, running.comparisons[0].deciding) == ("running", "sequential")
    assert (final.phase, final.comparisons[0].deciding) == ("final", "fixed-horizon")
    assert (running.p_value or 0.0) > (final.p_value or 1.0)


def test_stopping_early_does_not_earn_the_fixed_reading() -> None:
    result = rates((2000, 200), (2000, 260), planned_units=10_000, is_final=True)

    assert result.phase == "running"
    assert result.comparisons[0].fixed.is_significant
    assert not result.is_significant


def test_a_sample_ratio_mismatch_stops_the_verdict() -> None:
    result = rates((4000, 400), (6000, 900))

    assert result.state is State.SRM
    assert not result.is_significant
    assert result.winner is None
    assert not result.comparisons[0].sequential.is_significant
    assert "4,000 : 6,000" in result.verdict


def test_units_in_a_variant_of_weight_nought_are_an_error_of_their_own() -> None:
    arms = [
        ArmSummary.of_events("A", 10_000, 500, 50, is_control=True),
        ArmSummary.of_events("B", 0, 3, 3),
    ]

    assert analyse(arms, kind="proportion").state is State.UNEXPECTED_UNITS


def test_the_ratio_is_judged_on_exposed_units() -> None:
    arms = [
        ArmSummary("A", 5000, True, 4000, 1.0, 4000.0, exposed_n=10_000),
        ArmSummary("B", 5000, False, 6000, 1.0, 6000.0, exposed_n=10_000),
    ]

    assert analyse(arms, kind="mean").state is State.OK


@pytest.mark.parametrize(
    ("result", "state"),
    [
        (rates((0, 0), (0, 0)), State.NOT_ENOUGH_DATA),
        (rates((1, 1), (1, 0)), State.NOT_ENOUGH_DATA),
        (rates((2, 2), (2, 0)), State.NOT_ENOUGH_DATA),
        (rates((500, 50)), State.NOT_ENOUGH_DATA),
        (rates((500, 0), (500, 0)), State.NO_VARIANCE),
        (rates((500, 500), (500, 500)), State.NO_VARIANCE),
        (rates((500, 50), (500, 501)), State.INVALID_DATA),
        (rates((500, -1), (500, 5)), State.INVALID_DATA),
        (rates((0, 5), (500, 5)), State.INVALID_DATA),
        (rates((-5, 0), (500, 5)), State.INVALID_DATA),
        (means(Moments(), Moments()), State.NOT_ENOUGH_DATA),
        (means(Moments(1, 5.0), Moments(1, 7.0)), State.NOT_ENOUGH_DATA),
        (means(Moments(2, 5.0, 1.0), Moments(2, 7.0, 1.0)), State.NOT_ENOUGH_DATA),
        (means(Moments(500, 3.0), Moments(500, 5.0)), State.NO_VARIANCE),
        (means(Moments(500, math.nan, 1.0), Moments(500, 5.0, 1.0)), State.INVALID_DATA),
        (means(Moments(500, 5.0, 1.0), Moments(500, math.inf, 1.0)), State.INVALID_DATA),
        (means(Moments(500, 5.0, math.nan), Moments(500, 5.0, 1.0)), State.INVALID_DATA),
        (means(Moments(500, 5.0, -1.0), Moments(500, 5.0, 1.0)), State.INVALID_DATA),
        (means(Moments(500, 1e200, 1.0), Moments(500, 5.0, 1.0)), State.INVALID_DATA),
    ],
)
def test_degenerate_data_get_a_named_state(result: Analysis, state: State) -> None:
    assert result.state is state
    assert not result.is_significant
    assert result.winner is None
    assert result.reason in result.verdict
    json.dumps(result.to_json(), allow_nan=False)


def test_a_proportion_of_neither_noughts_nor_ones_is_refused() -> None:
    arms = [ArmSummary("A", 5000, True, 10, 0.55), ArmSummary("B", 5000, False, 10, 0.5)]

    assert analyse(arms, kind="proportion").state is State.INVALID_DATA


def test_a_control_mean_of_nought_has_no_uplift_but_a_verdict() -> None:
    result = means(Moments(1000, 0.0, 100.0), Moments(1000, 5.0, 100.0))

    assert result.is_significant
    assert result.uplift is None
    assert result.uplift_interval is None
    assert result.interval is not None


def test_no_events_in_control_is_fisher_at_the_planned_end() -> None:
    result = rates((1000, 0), (1000, 12), planned_units=2000, is_final=True)

    assert result.p_value == pytest.approx(0.0005, abs=0.00005)
    assert result.winner == "B"


def test_a_hundred_million_units_with_a_large_mean_are_read_exactly() -> None:
    result = means(
        Moments(10**8, 1e9, 1e8), Moments(10**8, 1e9 + 0.001, 1e8), planned_units=2 * 10**8
    )

    assert result.winner == "B"
    assert result.comparisons[0].standard_error == pytest.approx(math.sqrt(2e-8), rel=1e-3)


def test_alpha_is_split_over_the_treatments() -> None:
    two, four = rates((900, 90), (900, 99)), rates((900, 90), *[(900, 99)] * 3)

    assert two.comparisons[0].sequential.alpha == pytest.approx(0.025)
    assert four.comparisons[0].sequential.alpha == pytest.approx(0.025 / 3)


def test_of_several_better_arms_the_largest_effect_wins() -> None:
    result = rates((9000, 900), (9000, 1300), (9000, 1800))

    assert [compared.arm for compared in result.comparisons if compared.is_significant] == [
        "B",
        "C",
    ]
    assert result.winner == "C"


@pytest.mark.parametrize(
    ("arms", "more"),
    [
        ([], {}),
        ([ArmSummary("A", 5000, False, 5, 0.2)], {}),
        ([ArmSummary("A", 1, True, 5, 0.2), ArmSummary("B", 1, True, 5, 0.2)], {}),
        ([ArmSummary("A", 1, True, 5, 0.2), ArmSummary("A", 1, False, 5, 0.2)], {}),
        ([ArmSummary("A", 0, True, 5, 0.2)], {}),
        ([ArmSummary("A", 1, True, 5, 0.2)], {"alpha": 1.0}),
        ([ArmSummary("A", 1, True, 5, 0.2)], {"planned_units": 0}),
    ],
)
def test_it_refuses_arguments_that_no_data_can_mend(
    arms: list[ArmSummary], more: dict[str, Any]
) -> None:
    with pytest.raises(ValueError):
        analyse(arms, kind="proportion", **more)


NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0.0, 1.0, 1e150, 5e-324])
)


@given(
    st.lists(st.tuples(st.integers(-2, 10**9), NUMBERS, NUMBERS), min_size=1, max_size=4),
    st.sampled_from(["mean", "proportion"]),
    st.booleans(),
)
def test_any_numbers_give_a_state_and_json(
    rows: list[tuple[int, float, float]], kind: Kind, is_final: bool
) -> None:
    arms = [ArmSummary(str(i), 2500, i == 0, *row) for i, row in enumerate(rows)]

    result = analyse(arms, kind=kind, planned_units=1000, is_final=is_final)

    json.dumps(result.to_json(), allow_nan=False)
    assert result.verdict.endswith(".")
    assert result.state is State.OK or not result.is_significant


def test_an_a_a_experiment_looked_at_often_is_rarely_significant() -> None:
    rng, wins, runs = np.random.default_rng(8), 0, 120
    for _ in range(runs):
        events = np.cumsum(rng.binomial(200, 0.1, (2, 25)), axis=-1)
        wins += any(
            rates(
                (200 * (look + 1), int(a)),
                (200 * (look + 1), int(b)),
                planned_units=10_000,
                is_final=look == 24,
            ).is_significant
            for look, (a, b) in enumerate(events.T)
        )

    assert wins / runs <= 0.05 + 0.04
