"""The sequential reading: it waits for enough units, is valid at every look, and has power."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.experiments.stats.comparison import State, compare_means, compare_rates
from apps.experiments.stats.moments import Moments
from apps.experiments.stats.sequential import boundary, read_sequential, sequential_wait_reason
from bench import decisions_peeking as peeking
from bench.decisions_peeking import Peeking


@pytest.mark.parametrize(
    ("control_n", "n", "events", "is_silent"),
    [
        (99, 5000, None, True),
        (100, 100, None, False),
        (5000, 5000, (4, 5), True),
        (5000, 5000, (4, 6), False),
        (5000, 5000, (4996, 4996), True),
        (9500, 500, (20, 30), True),
        (9500, 500, (30, 30), False),
    ],
)
def test_it_waits_until_the_approximation_is_valid(
    control_n: int, n: int, events: tuple[int, int] | None, is_silent: bool
) -> None:
    assert (sequential_wait_reason(control_n, n, events) is not None) == is_silent


def test_too_few_units_are_a_state_with_its_reason() -> None:
    difference = compare_means(Moments(40, 1.0, 40.0), Moments(40, 9.0, 40.0))

    reading = read_sequential(
        difference,
        n=80,
        alpha=0.025,
        planned_units=None,
        wait_reason=sequential_wait_reason(40, 40),
    )

    assert reading.state is State.NOT_ENOUGH_DATA
    assert not reading.is_significant
    assert "100 units (the smaller has 40)" in reading.reason


def test_the_half_width_is_that_of_the_method() -> None:
    n, alpha, planned = 4000, 0.025, 10_000
    tuned = planned / 2
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / tuned
    k = n * rho2 + 1
    expected = math.sqrt(n) * math.sqrt(2 * k / (n**2 * rho2) * math.log(math.sqrt(k) / alpha))

    assert boundary(n, alpha, planned)[0] == pytest.approx(expected, rel=1e-12)


@given(
    st.integers(100, 10**7),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.sampled_from([0.005, 0.025, 0.1]),
)
def test_the_interval_never_contradicts_p(n: int, pa: float, pb: float, alpha: float) -> None:
    difference = compare_rates(n, round(n * pa), n, round(n * pb))
    reading = read_sequential(
        difference, n=2 * n, alpha=alpha, planned_units=10_000, wait_reason=None
    )

    if reading.state is not State.OK or abs((reading.p_value or 0.0) / alpha - 1.0) < 1e-6:
        return
    assert reading.low is not None
    assert reading.high is not None
    assert reading.is_significant == (reading.low > 0.0 or reading.high < 0.0)


PEEKED = [
    Peeking(
        "rate 10%",
        peeking.even_looks(250, 100, 100),
        peeking.rate(0.1),
        peeking.rate(0.1),
        True,
    ),
    Peeking(
        "rate 2% at 95:5",
        peeking.even_looks(250, 190, 10),
        peeking.rate(0.02),
        peeking.rate(0.02),
        True,
    ),
    Peeking(
        "rate 0.5%",
        peeking.even_looks(250, 100, 100),
        peeking.rate(0.005),
        peeking.rate(0.005),
        True,
    ),
    Peeking("normal", peeking.even_looks(250, 20, 20), peeking.normal(), peeking.normal()),
    Peeking("log-spaced", peeking.log_looks(200, 50, 10**6), peeking.normal(), peeking.normal()),
]


@pytest.mark.parametrize("case", PEEKED, ids=lambda case: case.name)
def test_continuous_looks_do_not_raise_false_positives(case: Peeking) -> None:
    significant, z_significant = peeking.peek(np.random.default_rng(5), case, runs=2000)

    assert significant <= 0.025
    assert z_significant > 0.3


def test_most_runs_are_significant_before_the_planned_end() -> None:
    looks = peeking.even_looks(100, 77, 77)
    case = Peeking("A/B", looks, peeking.rate(0.10), peeking.rate(0.12), True)

    significant, _ = peeking.peek(np.random.default_rng(6), case, runs=1500)

    assert significant > 0.75


def test_the_simulation_agrees_with_the_product() -> None:
    sums = np.array([[100.0], [100.0], [160.0], [160.0]])
    z, is_ready = peeking._z_and_readiness(sums, 1000, 1000, is_rate=True)
    difference = compare_rates(1000, 100, 1000, 160)

    assert z[0] == pytest.approx(difference.effect / difference.standard_error)
    assert bool(is_ready[0]) == (sequential_wait_reason(1000, 1000, (100, 160)) is None)
