"""PostgreSQL and DuckDB give the same results for the same rows, up to float rounding."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from django.core.management import CommandError, call_command

from apps.experiments.attribution import sent_metrics
from apps.experiments.models import Experiment, OutcomeRow
from apps.experiments.postgres import Postgres
from apps.experiments.results import compute_result
from apps.experiments.stats.report import make_report
from apps.experiments.sufficient_statistics import collect_statistics
from apps.experiments.unit_values import fold
from apps.experiments.warehouse.export import Exported, export_parquet
from apps.lib.clock import database_now
from tests.experiments.warehouse.agreement import LATER, ONE_SEED, all_same, warehouse

pytestmark = pytest.mark.django_db


def test_postgresql_and_duckdb_say_the_same_of_everything(
    experiment: Experiment, files: Exported
) -> None:
    mine = collect_statistics(experiment, LATER, Postgres())
    theirs = collect_statistics(experiment, LATER, warehouse(files))

    all_same(mine, theirs)
    reports = [
        make_report(g.data, alpha=0.05, planned_units=9_000).to_json() for g in (mine, theirs)
    ]
    assert reports[0]["verdict"] == reports[1]["verdict"]


@ONE_SEED
def test_a_value_that_every_unit_has_is_no_difference_in_either_source(
    experiment: Experiment, files: Exported
) -> None:
    for source in (Postgres(), warehouse(files)):
        data = collect_statistics(experiment, LATER, source).data
        (metric,) = (m for m in data.metrics if m.spec.name == "always")

        moments = [arm.comoments.moments() for arm in metric.arms.values()]
        assert [(arm.mean, arm.m2) for arm in moments] == [(0.3, 0.0)] * 2


@ONE_SEED
def test_an_event_that_is_there_twice_counts_once(experiment: Experiment, files: Exported) -> None:
    with duckdb.connect() as engine:
        twice = files.outcomes.with_name("twice.parquet")
        again = f"SELECT * FROM read_parquet('{files.outcomes}')"
        engine.execute(f"COPY ({again} UNION ALL {again}) TO '{twice}' (FORMAT parquet)")

    doubled = Exported(files.exposures, twice, files.measured)

    all_same(
        collect_statistics(experiment, LATER, Postgres()),
        collect_statistics(experiment, LATER, warehouse(doubled)),
    )


@ONE_SEED
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


@ONE_SEED
def test_commands_write_the_files_and_analyse_them(experiment: Experiment, tmp_path: Path) -> None:
    out = io.StringIO()
    call_command("export_experiment", experiment.name, str(tmp_path), stdout=out)
    named = {n: str(tmp_path / f"{n}.parquet") for n in ("exposures", "outcomes", "measured")}
    output = io.StringIO()
    call_command("analyse_experiment", experiment.name, json=True, stdout=output, **named)

    assert "exposures.parquet" in out.getvalue()
    result, own = json.loads(output.getvalue()), compute_result(experiment, database_now()).result
    assert own is not None
    assert (result["verdict"], result["quality"]) == (own["verdict"], own["quality"])
    with pytest.raises(CommandError, match="no experiment"):
        call_command("export_experiment", "nobody", str(tmp_path))
    with pytest.raises(CommandError, match="warehouse"):
        call_command("analyse_experiment", experiment.name, exposures="x.parquet", outcomes="y")


@ONE_SEED
def test_outcomes_belong_to_the_same_exposures_in_either_source(
    experiment: Experiment, files: Exported
) -> None:
    sent = sent_metrics(experiment)

    mine = Postgres().attributions(experiment, sent)
    theirs = warehouse(files).attributions(experiment, sent)

    assert mine == theirs
    soon = mine[[metric.name for metric in sent].index("soon")]
    assert min(soon.in_time, soon.before, soon.after_window) > 0


@ONE_SEED
@pytest.mark.parametrize("skew_s", [0, 30])
def test_the_tolerated_skew_of_clocks_is_the_same_in_either_source(
    experiment: Experiment, tmp_path: Path, settings: Any, skew_s: int
) -> None:
    settings.OUTCOME_CLOCK_SKEW_S = skew_s
    fold(experiment, list(experiment.exposures.values_list("unit", flat=True)))
    files = export_parquet(experiment, tmp_path / "skewed")

    all_same(
        collect_statistics(experiment, LATER, Postgres()),
        collect_statistics(experiment, LATER, warehouse(files)),
    )
