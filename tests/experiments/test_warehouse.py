"""PostgreSQL and DuckDB say the same of the same rows, to the last digits that floats allow."""

from __future__ import annotations

import io
import json
import math
import random
from datetime import timedelta
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pytest
from django.core.management import CommandError, call_command

from apps.experiments.columns import metric_columns, uses_of
from apps.experiments.gather import Gathered, gather
from apps.experiments.models import Experiment, MeasuredUnit, Metric, OutcomeRow, WeightChange
from apps.experiments.phases import phases_of
from apps.experiments.postgres import Postgres
from apps.experiments.results import compute_result
from apps.experiments.scan import Scan
from apps.experiments.services import MetricChoice
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.report import make_report
from apps.experiments.values import fold_all
from apps.experiments.warehouse.export import Exported, export_parquet
from apps.experiments.warehouse.source import Warehouse, connect
from apps.experiments.warehouse.units import Tables, units_of
from apps.lib.errors import Unavailable
from tests.experiments.factories import NOW, expose, make_running, observe

pytestmark = pytest.mark.django_db
UNITS = 250
# Half the distance from 1 to the next float, relatively: what rounding once may cost.
EPS = 2.0**-53
SEEDS = [11, 12, 13]
LATER = NOW + timedelta(seconds=150)
COUNTRIES = ["ch", "de", 'fr, "it"', "", None]


def metrics() -> list[MetricChoice]:
    """Return one use of every way to count; the later ones count outcomes of the first ones."""
    make = Metric.objects.create
    spend, sessions = make(name="spend", kind="mean", per_unit="sum"), make(name="sessions")
    made = [
        make(name="clicked", kind="proportion"),
        spend,
        make(name="spend-per-session", kind="ratio", outcomes_of=spend, divided_by=sessions),
        make(name="spend-p90", kind="quantile", outcomes_of=spend, per_unit="max",
             quantile_ppm=900_000),
        make(name="capped", kind="mean", outcomes_of=spend, per_unit="sum", missing_is_zero=True,
             cap=1e6 + 1.5),
        make(name="soon", kind="mean", outcomes_of=spend, per_unit="mean", window_s=40),
        make(name="first", kind="mean", outcomes_of=spend, per_unit="first"),
        # Every unit has 0.3, whose sums are not exact.
        make(name="always", kind="mean", per_unit="first"),
        make(name="latency", kind="ratio", source="latency", direction="decrease"),
        make(name="slow", kind="quantile", source="latency", quantile_ppm=500_000),
        make(name="failing", kind="proportion", source="errors", direction="decrease"),
        make(name="cached", kind="mean", source="cache"),
    ]  # fmt: skip
    return [MetricChoice(metric, "secondary" if i else "primary") for i, metric in enumerate(made)]


@pytest.fixture
def bare() -> Experiment:
    made = make_running(
        metrics=metrics(), dimensions=["tenant", "x-country"], stratify_by="x-country",
        covariate_s=60, holdout_bp=100,
    )  # fmt: skip
    at = NOW + timedelta(seconds=50)
    WeightChange.objects.create(
        experiment=made, at=at, weights_bp={"weak": 3_000, "strong": 7_000}, actor="anna"
    )
    return made


@pytest.fixture(params=SEEDS)
def experiment(bare: Experiment, request: pytest.FixtureRequest) -> Experiment:
    made = bare
    sent = {name: Metric.objects.get(name=name) for name in ("clicked", "spend", "sessions")}
    always = Metric.objects.get(name="always")
    dice = random.Random(request.param)
    for i in range(UNITS):
        country, arm = dice.choice(COUNTRIES), dice.choice(["weak", "strong", "holdout", "odd"][:3])
        attributes = None if country is None else {"x-country": country}
        expose(
            made, f"u{i}", arm, dice.uniform(0, 100), crossed_over=i % 23 == 0,
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
                experiment=made, unit=f"u{i}", requests=requests, errors=dice.randint(0, 1),
                cache_hits=dice.randint(0, requests - 1), latency_us=dice.randint(0, 90_000),
            )  # fmt: skip
    fold_all()
    return made


@pytest.fixture
def files(experiment: Experiment, tmp_path: Path) -> Exported:
    return export_parquet(experiment, tmp_path / "out")


def warehouse(files: Exported) -> Warehouse:
    names = {"exposures": files.exposures, "outcomes": files.outcomes, "measured": files.measured}
    return connect("duckdb://", **{name: str(path) for name, path in names.items()})


def same(one: Comoments, other: Comoments) -> None:
    """Fail unless both have the digits that the units' values have: those are sums, each of a few
    outcomes, and so may differ by their last digits.
    """
    assert one.n == other.n
    assert one.means == pytest.approx(other.means, rel=16 * EPS, abs=0.0)
    k = len(one.means)
    for i, j in combinations_with_replacement(range(k), 2):
        a, b = (math.sqrt(one.product(x, x)) for x in (i, j))
        # Σ|deviation| ≤ √n · √Σdeviation², and a value is known to some EPS of itself.
        known = math.sqrt(one.n) * (abs(one.means[i]) * b + abs(one.means[j]) * a)
        assert abs(one.product(i, j) - other.product(i, j)) <= EPS * (16 * a * b + 2 * known)


def all_same(one: Gathered, other: Gathered) -> None:
    assert one.data.arms == other.data.arms
    assert one.data.exposed == other.data.exposed
    assert one.data.phases == other.data.phases
    counted = [(g.crossed_over, g.moved, g.strangers, g.holdout_units) for g in (one, other)]
    assert counted[0] == counted[1]
    assert counted[0][0] > 0
    assert counted[0][1] > 0
    for a, b in zip(one.data.metrics, other.data.metrics, strict=True):
        assert a.spec == b.spec
        assert set(a.arms) == set(b.arms)
        assert a.edges == pytest.approx(b.edges, rel=1e-12)
        for name, arm in a.arms.items():
            same(arm.comoments, b.arms[name].comoments)
            assert arm.order == b.arms[name].order
            assert arm.counts == b.arms[name].counts
            assert set(arm.strata) == set(b.arms[name].strata)
            for level, found in arm.strata.items():
                same(found, b.arms[name].strata[level])
        for dimension, levels in a.breakdowns.items():
            assert list(levels) == list(b.breakdowns[dimension])
            for level, arms in levels.items():
                for name, found in arms.items():
                    same(found, b.breakdowns[dimension][level][name])


def test_postgresql_and_duckdb_say_the_same_of_everything(
    experiment: Experiment, files: Exported
) -> None:
    mine = gather(experiment, LATER, Postgres())
    theirs = gather(experiment, LATER, warehouse(files))

    all_same(mine, theirs)
    reports = [
        make_report(g.data, alpha=0.05, planned_units=9_000).to_json() for g in (mine, theirs)
    ]
    assert reports[0]["verdict"] == reports[1]["verdict"]


@pytest.mark.parametrize("experiment", SEEDS[:1], indirect=True)
def test_a_value_that_every_unit_has_is_no_difference_in_either_source(
    experiment: Experiment, files: Exported
) -> None:
    for source in (Postgres(), warehouse(files)):
        data = gather(experiment, LATER, source).data
        (found,) = (m for m in data.metrics if m.spec.name == "always")

        seen = [arm.comoments.moments() for arm in found.arms.values()]
        assert [(arm.mean, arm.m2) for arm in seen] == [(0.3, 0.0)] * 2


@pytest.mark.parametrize("experiment", SEEDS[:1], indirect=True)
def test_an_event_that_is_there_twice_counts_once(experiment: Experiment, files: Exported) -> None:
    with duckdb.connect() as engine:
        twice = files.outcomes.with_name("twice.parquet")
        again = f"SELECT * FROM read_parquet('{files.outcomes}')"
        engine.execute(f"COPY ({again} UNION ALL {again}) TO '{twice}' (FORMAT parquet)")

    doubled = Exported(files.exposures, twice, files.measured)

    all_same(gather(experiment, LATER, Postgres()), gather(experiment, LATER, warehouse(doubled)))


@pytest.mark.parametrize("engine", ["duckdb", "databricks", "trino", "bigquery"])
def test_the_query_is_written_for_each_engine(bare: Experiment, engine: str) -> None:
    schemas = {
        "exposures": {"experiment": "string", "unit": "string", "variant": "string",
                      "at": "timestamp('UTC')", "crossed_over": "boolean", "bucket": "int64",
                      "tenant": "string", "x-country": "string"},
        "outcomes": {"event_id": "string", "unit": "string", "metric": "string",
                     "value": "float64", "occurred_at": "timestamp('UTC')"},
        "measured": {"experiment": "string", "unit": "string", "requests": "int64",
                     "errors": "int64", "cache_hits": "int64", "latency_us": "int64"},
    }  # fmt: skip
    tables = Tables(*(ibis.table(schema, name=name) for name, schema in schemas.items()))
    columns = tuple(metric_columns(bare, uses_of(bare)))
    phases = tuple(phases_of(["weak", "strong"], [(NOW, {"weak": 5_000, "strong": 5_000})]))
    scan = Scan(bare, ("weak", "strong"), columns, phases, NOW)

    text = str(ibis.to_sql(units_of(scan, tables), dialect=engine))

    assert "exposures" in text
    assert f"v{columns[-1].places[-1]}" in text


@pytest.mark.parametrize("experiment", SEEDS[:1], indirect=True)
def test_an_installation_that_names_a_warehouse_gets_its_results_from_there(
    experiment: Experiment, files: Exported, settings: Any
) -> None:
    before = compute_result(experiment, LATER).result
    settings.WAREHOUSE_URL = "duckdb://"
    settings.WAREHOUSE_EXPOSURES = str(files.exposures)
    settings.WAREHOUSE_OUTCOMES = str(files.outcomes)
    settings.WAREHOUSE_MEASURED = str(files.measured)
    OutcomeRow.objects.all().delete()
    experiment.exposures.update(values=None)

    after = compute_result(experiment, LATER).result

    assert before is not None
    assert after is not None
    assert after["verdict"] == before["verdict"]
    assert [m["arms"][0]["n"] for m in after["metrics"]] == [
        m["arms"][0]["n"] for m in before["metrics"]
    ]


def test_a_warehouse_that_is_away_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="warehouse does not answer"):
        connect("duckdb://", exposures=str(tmp_path / "no.parquet"), outcomes="none")


BROKEN = [
    ("exposures", "SELECT * FROM t UNION ALL SELECT * FROM t", "each unit must have one"),
    ("measured", "SELECT * FROM t UNION ALL SELECT * FROM t", "each unit must have one"),
    ("outcomes", "SELECT * REPLACE (NULL::VARCHAR AS event_id) FROM t", "without event_id"),
    ("exposures", "SELECT * EXCLUDE (bucket) FROM t", "have no column bucket"),
    ("exposures", 'SELECT * EXCLUDE ("x-country") FROM t', "no column x-country, a dimension"),
    ("exposures", 'SELECT * REPLACE ("at"::VARCHAR AS "at") FROM t', "at must be an instant"),
    ("outcomes", "SELECT * REPLACE (now()::TIMESTAMP AS occurred_at) FROM t", "must be an instant"),
    ("outcomes", "SELECT * REPLACE (1 AS unit) FROM t", "unit must be text"),
]


@pytest.mark.parametrize(("dataset", "query", "told"), BROKEN)
def test_a_dataset_that_would_give_false_numbers_is_refused_and_the_result_says_why(
    bare: Experiment, settings: Any, tmp_path: Path, dataset: str, query: str, told: str
) -> None:
    expose(bare, "u", "weak", attributes={"x-country": "ch"})
    observe(Metric.objects.get(name="clicked"), "u", 1.0)
    MeasuredUnit.objects.create(experiment=bare, unit="u", requests=1)
    path = getattr(export_parquet(bare, tmp_path), dataset)
    with duckdb.connect() as engine:
        engine.execute(f"CREATE TABLE t AS SELECT * FROM read_parquet('{path}')")
        engine.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")
    settings.WAREHOUSE_URL = "duckdb://"
    for name in ("exposures", "outcomes", "measured"):
        setattr(settings, f"WAREHOUSE_{name.upper()}", str(tmp_path / f"{name}.parquet"))

    computed = compute_result(bare, LATER)

    assert computed.result is None
    assert told in computed.error


def test_without_the_warehouse_the_last_result_stands_and_the_error_says_why(
    bare: Experiment, settings: Any, tmp_path: Path
) -> None:
    settings.WAREHOUSE_URL = "duckdb://"
    settings.WAREHOUSE_EXPOSURES = str(tmp_path / "gone.parquet")

    computed = compute_result(bare, LATER)

    assert computed.result is None
    assert "warehouse does not answer" in computed.error


@pytest.mark.parametrize("experiment", SEEDS[:1], indirect=True)
def test_commands_write_the_files_and_analyse_them(experiment: Experiment, tmp_path: Path) -> None:
    out = io.StringIO()
    call_command("export_experiment", experiment.name, str(tmp_path), stdout=out)
    named = {n: str(tmp_path / f"{n}.parquet") for n in ("exposures", "outcomes", "measured")}
    told = io.StringIO()
    call_command("analyse_experiment", experiment.name, json=True, stdout=told, **named)

    assert "exposures.parquet" in out.getvalue()
    assert json.loads(told.getvalue())["primary"] == "clicked"
    with pytest.raises(CommandError, match="no experiment"):
        call_command("export_experiment", "nobody", str(tmp_path))
    with pytest.raises(CommandError, match="warehouse"):
        call_command("analyse_experiment", experiment.name, exposures="x.parquet", outcomes="y")
