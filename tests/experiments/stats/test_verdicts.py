"""The verdict of a report: sample ratio first, one verdict, and a named state without one."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import Reading, State
from apps.experiments.stats.data import (
    ArmData,
    ArmSpec,
    ExperimentData,
    MetricData,
    MetricKind,
    MetricSpec,
    Phase,
)
from apps.experiments.stats.moments import Moments
from apps.experiments.stats.report import Report, make_report


def judged(
    arms: dict[str, Moments],
    kind: MetricKind,
    *,
    direction: str = "increase",
    weights: tuple[int, ...] | None = None,
    exposed: dict[str, int] | None = None,
    controls: int = 1,
    alpha: float = 0.05,
    planned_units: int = 10_000,
    is_final: bool = False,
) -> Report:
    """Return the report of one metric; the first arm is control, weights are equal by default."""
    shares = weights or (10_000 // max(1, len(arms)),) * len(arms)
    specs = [
        ArmSpec(name, weight, i < controls)
        for i, (name, weight) in enumerate(zip(arms, shares, strict=True))
    ]
    units = exposed or {name: max(0, moments.n) for name, moments in arms.items()}
    spec = MetricSpec("m", "primary", kind, direction == "increase")
    arm_data = {name: ArmData(Comoments(m.n, (m.mean,), (m.m2,))) for name, m in arms.items()}
    share_of = {arm.name: float(arm.weight_bp) for arm in specs}
    data = ExperimentData(
        tuple(specs), units, (Phase(units, share_of),), (MetricData(spec, arm_data),)
    )
    return make_report(data, alpha=alpha, planned_units=planned_units, is_final=is_final)


def events(n: int, count: int) -> Moments:
    rate = count / n if n else (math.inf if count else 0.0)
    return Moments(n, rate, max(0.0, count * (1.0 - rate)) if n else 0.0)


def rates(*arms: tuple[int, int], **more: Any) -> Report:
    """Return the report of a proportion; control first, equal weights."""
    return judged({"ABCDEFGH"[i]: events(*arm) for i, arm in enumerate(arms)}, "proportion", **more)


def means(*arms: Moments, **more: Any) -> Report:
    return judged({"ABCDEFGH"[i]: arm for i, arm in enumerate(arms)}, "mean", **more)


def leading(report: Report) -> Reading:
    assert report.primary.leading is not None
    return report.primary.leading.reading


def test_a_clear_difference_is_a_win_with_a_sentence() -> None:
    result = rates((5000, 500), (5010, 650), planned_units=10_000)

    assert result.primary.is_significant
    assert result.primary.winner == "B"
    assert result.verdict.startswith("B is better than A: 13% against 10%, +2.97 points (97.5%")
    assert (leading(result).low or 0.0) > 0.0
    assert result.primary.comparisons[0].uplift == pytest.approx(0.2974, abs=1e-4)


def test_the_direction_says_which_way_is_better() -> None:
    result = rates((5000, 500), (5010, 650), planned_units=10_000, direction="decrease")

    assert result.primary.is_significant
    assert result.primary.winner is None
    assert result.verdict.startswith("B is worse than A")


def test_while_running_the_sequential_reading_decides() -> None:
    arms = ((5000, 500), (5000, 570))

    running = rates(*arms, planned_units=10_000)
    final = rates(*arms, planned_units=10_000, is_final=True)

    assert (running.primary.is_significant, final.primary.is_significant) == (False, True)
    assert (running.phase, running.primary.comparisons[0].deciding) == ("running", "sequential")
    assert (final.phase, final.primary.comparisons[0].deciding) == ("final", "fixed-horizon")
    assert (leading(running).p_value or 0.0) > (leading(final).p_value or 1.0)


def test_an_early_stop_does_not_use_the_fixed_reading() -> None:
    result = rates((2000, 200), (2000, 260), planned_units=10_000, is_final=True)

    assert result.phase == "running"
    assert result.primary.comparisons[0].fixed.is_significant
    assert not result.primary.is_significant


def test_a_sample_ratio_mismatch_stops_the_verdict() -> None:
    result = rates((4000, 400), (6000, 900))

    assert result.primary.state is State.SRM
    assert not result.primary.is_significant
    assert result.primary.winner is None
    assert not result.primary.comparisons[0].sequential.is_significant
    assert "4,000 : 6,000" in result.verdict


def test_units_in_a_variant_of_weight_0_have_their_own_state() -> None:
    result = rates((500, 50), (3, 3), weights=(10_000, 0))

    assert result.primary.state is State.UNEXPECTED_UNITS


def test_the_ratio_is_judged_on_exposed_units() -> None:
    arms = Moments(4_000, 1.0, 4_000.0), Moments(6_000, 1.0, 6_000.0)

    assert means(*arms, exposed={"A": 10_000, "B": 10_000}).primary.state is State.OK


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
def test_degenerate_data_get_a_named_state(result: Report, state: State) -> None:
    assert result.primary.state is state
    assert not result.primary.is_significant
    assert result.primary.winner is None
    assert result.primary.reason in result.verdict
    json.dumps(result.to_json(), allow_nan=False)


def test_a_proportion_with_values_other_than_0_and_1_is_rejected() -> None:
    result = judged({"A": Moments(10, 0.55), "B": Moments(10, 0.5)}, "proportion")

    assert result.primary.state is State.INVALID_DATA


def test_a_control_mean_of_0_has_a_verdict_but_no_uplift() -> None:
    result = means(Moments(1000, 0.0, 100.0), Moments(1000, 5.0, 100.0))

    assert result.primary.is_significant
    assert result.primary.comparisons[0].uplift is None
    assert leading(result).uplift_low is None
    assert leading(result).low is not None


def test_no_events_in_control_is_fisher_at_the_planned_end() -> None:
    result = rates((1000, 0), (1000, 12), planned_units=2000, is_final=True)

    assert leading(result).p_value == pytest.approx(0.0005, abs=0.00005)
    assert result.primary.winner == "B"


def test_a_hundred_million_units_with_a_large_mean_are_read_exactly() -> None:
    result = means(
        Moments(10**8, 1e9, 1e8), Moments(10**8, 1e9 + 0.001, 1e8), planned_units=2 * 10**8
    )

    assert result.primary.winner == "B"
    assert result.primary.comparisons[0].standard_error == pytest.approx(math.sqrt(2e-8), rel=1e-3)


def test_alpha_is_split_over_the_treatments() -> None:
    two, four = rates((900, 90), (900, 99)), rates((900, 90), *[(900, 99)] * 3)

    assert two.primary.comparisons[0].sequential.alpha == pytest.approx(0.025)
    assert four.primary.comparisons[0].sequential.alpha == pytest.approx(0.025 / 3)


def test_of_several_better_arms_the_largest_effect_wins() -> None:
    result = rates((9000, 900), (9000, 1300), (9000, 1800))

    assert [compared.arm for compared in result.primary.comparisons if compared.is_significant] == [
        "B",
        "C",
    ]
    assert result.primary.winner == "C"


@pytest.mark.parametrize(
    "more", [{"controls": 0}, {"controls": 2}, {"alpha": 1.0}, {"planned_units": 0}]
)
def test_invalid_arguments_are_rejected(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        rates((5, 1), (5, 1), **more)


NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0.0, 1.0, 1e150, 5e-324])
)


@given(
    st.lists(st.tuples(st.integers(-2, 10**9), NUMBERS, NUMBERS), min_size=1, max_size=4),
    st.sampled_from(["mean", "proportion"]),
    st.booleans(),
)
def test_any_numbers_give_a_state_and_json(
    rows: list[tuple[int, float, float]], kind: MetricKind, is_final: bool
) -> None:
    arms = {str(i): Moments(*row) for i, row in enumerate(rows)}
    units = {name: max(0, moments.n) for name, moments in arms.items()}

    result = judged(arms, kind, exposed=units, planned_units=1000, is_final=is_final)

    json.dumps(result.to_json(), allow_nan=False)
    assert result.verdict.endswith(".")
    assert result.primary.state is State.OK or not result.primary.is_significant
