"""For any sufficient statistics, a report has numbers or states, never NaN."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import Reading, State, UpliftState
from apps.experiments.stats.data import (
    ArmData,
    ArmSpec,
    ExperimentData,
    MetricData,
    MetricKind,
    MetricSpec,
    Phase,
    Stratum,
)
from apps.experiments.stats.quantiles import order_statistics_of
from apps.experiments.stats.report import make_report
from apps.experiments.stats.shapes import Compared, MetricReport

KINDS: tuple[MetricKind, ...] = ("proportion", "mean", "ratio", "quantile")
LEVELS = ("x", "y", "z")
EDGES = (0.0, 1.0)
# Units per arm: none, one, the minimum for a variance, and enough for every reading.
SIZES = (0, 1, 2, 3, 150, 2_000)
SHAPES = ("noughts", "ones", "constant", "normal", "tiny", "huge", "far", "spikes", "rate")


def column(rng: np.random.Generator, n: int, shape: str) -> Any:
    return {
        "noughts": lambda: np.zeros(n),
        "ones": lambda: np.ones(n),
        "constant": lambda: np.full(n, rng.normal()),
        "normal": lambda: rng.normal(rng.normal(), 1.0, n),
        "tiny": lambda: rng.normal(3e-12, 1e-12, n),
        "huge": lambda: rng.normal(0, 1e12, n) ** 9,
        "far": lambda: rng.normal(1e9, 1.0, n),
        "spikes": lambda: np.where(rng.random(n) < 0.01, 1e12, 0.0),
        "rate": lambda: (rng.random(n) < rng.random()).astype(float),
    }[shape]()


def arm(spec: MetricSpec, rng: np.random.Generator, n: int, shapes: list[str]) -> ArmData:
    rate = spec.kind == "proportion"
    known = [shape if not rate else "rate" for shape in shapes]
    if rate and shapes[0] in ("noughts", "ones"):
        known[0] = shapes[0]
    rows = np.column_stack([column(rng, n, shape) for shape in known[: spec.width]])
    labels, phases = rng.integers(0, len(LEVELS), n), rng.integers(0, rng.integers(1, 4), n)
    order = None
    if spec.kind == "quantile" and n:
        order = order_statistics_of(np.sort(rows[:, 0]), spec.quantile or 0.5)
    counts = np.bincount(np.searchsorted(EDGES, rows[:, 0], side="right"), minlength=3).tolist()
    strata = {
        Stratum(int(phase), name): Comoments.of(rows[(labels == i) & (phases == phase)])
        for i, name in enumerate(LEVELS)
        for phase in np.unique(phases)
    }
    return ArmData(Comoments.of(rows), order, tuple(counts), strata if rng.random() < 0.5 else {})


def of_level(arm: ArmData, level: str) -> ArmData:
    phases = {at: units for at, units in arm.strata.items() if at.level == level}
    whole = reduce(Comoments.merge, phases.values())
    return ArmData(whole, strata={Stratum(at.phase): units for at, units in phases.items()})


@st.composite
def experiments(draw: st.DrawFn) -> ExperimentData:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    names = [f"v{i}" for i in range(draw(st.integers(2, 10)))]
    sizes = {name: draw(st.sampled_from(SIZES)) for name in names}
    metrics = []
    for place in range(draw(st.integers(1, 4))):
        role = "primary" if place == 0 else draw(st.sampled_from(["secondary", "guardrail"]))
        spec = MetricSpec(
            f"m{place}", role, draw(st.sampled_from(KINDS)), draw(st.booleans()),
            margin=0.1 if role == "guardrail" else None, quantile=0.9,
            has_covariate=draw(st.booleans()), mann_whitney=True,
        )  # fmt: skip
        shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=4, max_size=4))
        arms = {name: arm(spec, rng, sizes[name], shapes) for name in names if rng.random() < 0.95}
        levels = {
            level: {
                name: of_level(arm_data, level)
                for name, arm_data in arms.items()
                if arm_data.strata
            }
            for level in LEVELS
        }
        metrics.append(MetricData(spec, arms, EDGES, {"tenant": levels}))
    weight = 10_000 // len(names)
    specs = tuple(ArmSpec(name, weight, i == 0) for i, name in enumerate(names))
    phases = (Phase(sizes, dict.fromkeys(names, 1.0 / len(names))),)
    return ExperimentData(specs, sizes, phases, tuple(metrics))


@settings(max_examples=40, deadline=None)
@given(experiments(), st.booleans(), st.sampled_from([1, 10_000]))
def test_a_report_is_numbers_or_a_state(
    data: ExperimentData, is_final: bool, planned_units: int
) -> None:
    report = make_report(data, alpha=0.05, planned_units=planned_units, is_final=is_final)

    json.dumps(report.to_json(), allow_nan=False)
    for metric, metric_data in zip(report.metrics, data.metrics, strict=True):
        for compared in metric.comparisons:
            read = compared.reading
            numbers = {name: value for name, value in vars(read).items() if "uplift" not in name}
            assert all(value == value for value in numbers.values() if isinstance(value, float))
            if compared.is_significant:
                assert compared.state == "ok"
                assert read.low is not None
                assert read.high is not None
                assert read.low > 0.0 or read.high < 0.0
                assert min(a.comoments.n for a in metric_data.arms.values() if a.comoments.n) > 0


def as_planned(data: ExperimentData) -> ExperimentData:
    """Return the data with shares that match the units, so that no mismatch stops a verdict."""
    whole = sum(data.exposed.values()) or 1
    shares = {name: n / whole for name, n in data.exposed.items()}
    return replace(data, phases=(Phase(data.exposed, shares),))


def agree(reading: Reading, difference: float | None) -> None:
    """Assert that a reading's verdict, interval and p-value agree."""
    if reading.state is not State.OK:
        assert not reading.is_significant
        return
    assert None not in (reading.low, reading.high, reading.p_value, difference)
    assert reading.low <= difference <= reading.high
    assert 0.0 < reading.p_value <= 1.0
    # At the level itself rounding decides.
    if math.isclose(reading.p_value, reading.alpha, rel_tol=1e-6):
        return
    excludes = reading.low > 0.0 or reading.high < 0.0
    assert excludes == (reading.p_value < reading.alpha) == reading.is_significant
    if reading.uplift_state is UpliftState.OK:
        assert excludes == (reading.uplift_low > 0.0 or reading.uplift_high < 0.0)


def margin_agrees(metric: MetricReport, compared: Compared) -> None:
    judged = compared.non_inferiority
    if judged is None:
        assert metric.margin is None
        return
    above = judged.bound is not None and judged.bound > -judged.margin
    assert above == (judged.state == "not-worse")
    if judged.state == "worse" and compared.difference is not None:
        gain = compared.difference * (1.0 if metric.direction == "increase" else -1.0)
        assert gain < -judged.margin


@settings(max_examples=80, deadline=None)
@given(experiments(), st.booleans(), st.sampled_from([1, 10_000]))
def test_verdict_interval_and_p_value_never_contradict_each_other(
    data: ExperimentData, is_final: bool, planned_units: int
) -> None:
    report = make_report(
        as_planned(data), alpha=0.05, planned_units=planned_units, is_final=is_final
    )
    for metric in report.metrics:
        if metric.state is State.INVALID_DATA:
            continue
        for compared in metric.comparisons:
            agree(compared.sequential, compared.difference)
            agree(compared.fixed, compared.difference)
            margin_agrees(metric, compared)
            grows = compared.difference is not None and compared.difference > 0.0
            better = grows == (metric.direction == "increase")
            assert compared.is_significant == compared.reading.is_significant
            assert compared.outcome == (
                ("better" if better else "worse") if compared.is_significant else "undecided"
            )
