"""One experiment with every kind of metric, in PostgreSQL and as Parquet files."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path

import pytest

from apps.experiments.models import Experiment, MeasuredUnit, Metric, WeightChange
from apps.experiments.services import MetricChoice
from apps.experiments.unit_values import fold_all
from apps.experiments.warehouse.export import Exported, export_parquet
from tests.experiments.factories import NOW, expose, make_running, observe
from tests.experiments.warehouse.agreement import SEEDS
from tests.experiments.warehouse.engines import AVAILABLE, ENGINES

UNITS = 250
COUNTRIES = ["ch", "de", 'fr, "it"', "", None]


def metrics() -> list[MetricChoice]:
    """Return metrics of every kind; the later ones use outcomes of the first ones."""
    make = Metric.objects.create
    spend, sessions = make(name="spend", kind="mean", per_unit="sum"), make(name="sessions")
    choices = [
        make(name="clicked", kind="proportion"),
        spend,
        make(name="spend-per-session", kind="ratio", outcomes_of=spend, divided_by=sessions),
        make(name="spend-p90", kind="quantile", outcomes_of=spend, per_unit="max",
             quantile_ppm=900_000),
        make(name="capped", kind="mean", outcomes_of=spend, per_unit="sum", missing_is_zero=True,
             cap=1e6 + 1.5),
        make(name="soon", kind="mean", outcomes_of=spend, per_unit="mean", window_s=40),
        make(name="first", kind="mean", outcomes_of=spend, per_unit="first"),
        # Every unit has the value 0.3, whose sums are not exact.
        make(name="always", kind="mean", per_unit="first"),
        make(name="latency", kind="ratio", source="latency", direction="decrease"),
        make(name="slow", kind="quantile", source="latency", quantile_ppm=500_000),
        make(name="failing", kind="proportion", source="errors", direction="decrease"),
        make(name="cached", kind="mean", source="cache"),
    ]  # fmt: skip
    return [
        MetricChoice(metric, "secondary" if i else "primary") for i, metric in enumerate(choices)
    ]


@pytest.fixture
def bare() -> Experiment:
    created = make_running(
        metrics=metrics(), dimensions=["tenant", "x-country"], stratify_by="x-country",
        covariate_s=60, holdout_bp=100,
    )  # fmt: skip
    at = NOW + timedelta(seconds=50, microseconds=750_001)
    WeightChange.objects.create(
        experiment=created, at=at, weights_bp={"weak": 3_000, "strong": 7_000}, actor="anna"
    )
    return created


@pytest.fixture(params=SEEDS)
def experiment(bare: Experiment, request: pytest.FixtureRequest) -> Experiment:
    filled = bare
    sent = {name: Metric.objects.get(name=name) for name in ("clicked", "spend", "sessions")}
    always = Metric.objects.get(name="always")
    dice = random.Random(request.param)
    for i in range(UNITS):
        country, arm = dice.choice(COUNTRIES), dice.choice(["weak", "strong", "holdout", "odd"][:3])
        attributes = None if country is None else {"x-country": country}
        expose(
            filled, f"u{i}", arm, dice.uniform(0, 100), crossed_over=i % 23 == 0,
            tenant=dice.choice(["", "shop"]), attributes=attributes,
        )  # fmt: skip
        for name, metric in sent.items():
            for k in range(dice.choice([0, 1, 2, 3])):
                value = float(dice.random() < 0.3) if name == "clicked" else 1e6 + dice.gauss(0, 1)
                observe(metric, f"u{i}", value, dice.uniform(-60, 150) + k / 1_000)
        observe(always, f"u{i}", 0.3, 120)
        if i % 3:
            requests = dice.randint(1, 9)
            MeasuredUnit.objects.create(
                experiment=filled, unit=f"u{i}", requests=requests, errors=dice.randint(0, 1),
                cache_hits=dice.randint(0, requests - 1), latency_us=dice.randint(0, 90_000),
            )  # fmt: skip
    # Exposed one microsecond before the change of weights, and at its time.
    for unit, seconds in (("just-before", 50.75), ("just-then", 50.750001)):
        expose(filled, unit, "strong", seconds)
        observe(sent["spend"], unit, 1e6, seconds + 1)
    fold_all()
    return filled


@pytest.fixture
def files(experiment: Experiment, tmp_path: Path) -> Exported:
    return export_parquet(experiment, tmp_path / "out")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if missing := sorted(ENGINES.keys() - AVAILABLE):
        terminalreporter.section("not shown on this machine")
        terminalreporter.line(
            f"{' and '.join(missing)} are not here: for them the warehouse's queries were written "
            "and not run. `./run engines` runs them."
        )
