"""Whole reports of simulated experiments: false winners under repeated looks, and planned power."""

from __future__ import annotations

import math

import numpy as np
import pytest

from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.data import (
    ArmData,
    ArmSpec,
    ExperimentData,
    MetricData,
    MetricSpec,
    Phase,
)
from apps.experiments.stats.power import Baseline, Design, level_of, units_needed
from apps.experiments.stats.report import Report, make_report

RUNS_TASTE, RUNS_LONG = 40, 12_000
ALPHA = 0.05
METRICS = 4
ARMS = ("control", "a", "b")


@pytest.fixture
def runs(pytestconfig: pytest.Config) -> int:
    is_long = any("fuzz" in argument for argument in pytestconfig.args)
    return RUNS_LONG if is_long else RUNS_TASTE


def judged(values: list[list[Comoments]], planned: int, *, is_final: bool) -> Report:
    """Return the report of these values, metric by metric and arm by arm; the first is primary."""
    names = ARMS[: len(values[0])]
    arms = tuple(ArmSpec(name, 10_000 // len(names), i == 0) for i, name in enumerate(names))
    units = {name: arm.n for name, arm in zip(names, values[0], strict=True)}
    metrics = tuple(
        MetricData(
            MetricSpec(f"m{place}", "secondary" if place else "primary", "mean"),
            {name: ArmData(arm) for name, arm in zip(names, arm_values, strict=True)},
        )
        for place, arm_values in enumerate(values)
    )
    phase = Phase(units, dict.fromkeys(names, 1.0 / len(names)))
    data = ExperimentData(arms, units, (phase,), metrics)
    return make_report(data, alpha=ALPHA, planned_units=planned, is_final=is_final)


def more(rng: np.random.Generator, known: Comoments, n: int, mean: float = 0.0) -> Comoments:
    sample = rng.normal(mean, 1.0, (n, 1))
    return known.merge(Comoments.of(sample))


def test_equal_arms_are_seldom_significant_on_any_metric(runs: int) -> None:
    rng = np.random.default_rng(31)
    looks, each = 12, 120
    wrong = {"primary": 0, "secondary": 0}
    for _ in range(runs // 4):
        values = [[Comoments.empty(1)] * len(ARMS) for _ in range(METRICS)]
        roles: set[str] = set()
        for look in range(1, looks + 1):
            values = [[more(rng, arm, each) for arm in arms] for arms in values]
            report = judged(values, looks * each * len(ARMS), is_final=look == looks)
            roles |= {metric.role for metric in report.metrics if metric.is_significant}
        for role in roles:
            wrong[role] += 1

    # At most 5 % each for the primary, and for all secondary metrics together.
    limit = ALPHA * (runs // 4)
    for count in wrong.values():
        assert count <= limit + 4.0 * math.sqrt(limit)


def test_the_planned_size_has_the_planned_power(runs: int) -> None:
    rng = np.random.default_rng(32)
    design = Design((0.5, 0.5), level_of(ALPHA, 2))
    units = units_needed(Baseline(5.0, 1.0), design, 0.15)
    assert units is not None
    empty = Comoments.empty(1)
    wins = sum(
        judged(
            [[more(rng, empty, -(-units // 2), 5.0), more(rng, empty, -(-units // 2), 5.15)]],
            units,
            is_final=True,
        ).primary.winner
        == "a"
        for _ in range(runs)
    )

    # Within two points of the plan, if the number of runs allows.
    assert wins / runs == pytest.approx(0.80, abs=max(0.02, 3.0 * math.sqrt(0.16 / runs)))
