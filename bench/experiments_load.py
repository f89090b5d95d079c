"""Creates experiments of any size for `bench experiments`, with one INSERT for all units."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import perf_counter
from types import TracebackType
from typing import Any

from django.db import connection, transaction

from apps.experiments.columns import metric_columns, uses_of
from apps.experiments.models import Experiment, Metric, MetricUse, OutcomeRow, TouchedUnit, Variant
from apps.experiments.results import refresh_result
from apps.experiments.stats.report import make_report
from apps.experiments.sufficient_statistics import collect_statistics
from apps.experiments.unit_values import fold_all
from apps.lib.clock import database_now
from apps.models.models import ModelVersion, RegisteredModel

# The definitions of the metrics, in turn; the first is the primary metric.
KINDS: tuple[dict[str, Any], ...] = (
    {"kind": "proportion"},
    {"kind": "mean", "per_unit": "sum", "missing_is_zero": True},
    {"kind": "mean", "cap": 3.0},
    {"kind": "quantile", "quantile_ppm": 900_000},
    {"kind": "ratio", "source": "latency"},
    {"kind": "proportion", "window_s": 3_600},
    {"kind": "mean", "per_unit": "mean"},
    {"kind": "ratio", "source": "errors"},
    {"kind": "mean", "per_unit": "max"},
    {"kind": "proportion", "source": "cache", "direction": "increase"},
)
FILL = """
    INSERT INTO experiments_exposurerow (experiment_id, unit, variant_name, version_number, at,
        bucket, crossed_over, tenant, attributes, "values")
    SELECT %(experiment)s, 'u' || i, 'v' || i %% 10000 * %(arms)s / 10000, '1',
        now() - interval '1 day', i %% 10000, i %% 1000 = 0, '',
        jsonb_build_object('country', 'c' || i %% 7),
        ARRAY[{values}]::float8[]
    FROM generate_series(1, %(units)s) AS i
"""


class World:
    """One running experiment whose units have values; its rows are deleted on exit."""

    def __init__(self, units: int, arms: int, metrics: int, option: str) -> None:
        now = datetime.now(UTC)
        self.units = units
        self._offset = 1e6 if option == "offset" else 0.0
        self.name = f"e{units}-{arms}-{metrics}-{option.lower()}"
        self.experiment = _experiment(self.name, option, now - timedelta(days=2))
        for place in range(arms):
            _variant(self.experiment, place, 10_000 // arms, now)
        for place in range(metrics):
            _metric(self.experiment, place)

    def __enter__(self) -> World:
        uses = uses_of(self.experiment)
        columns = metric_columns(self.experiment, uses)
        slots = sorted({place for each in columns for place in each.places})
        kinds = {place: each for each in columns for place in each.places}
        values = ", ".join(_value(kinds[slot], slot, self._offset) for slot in slots)
        parameters: dict[str, Any] = {
            "experiment": self.experiment.pk,
            "arms": self.experiment.variants.count(),
            "units": self.units,
        }
        with connection.cursor() as cursor:
            cursor.execute(FILL.format(values=values), parameters)
            cursor.execute("VACUUM (ANALYZE) experiments_exposurerow")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE experiments_exposurerow, experiments_outcomerow")
        Experiment.objects.filter(pk=self.experiment.pk).update(state="completed")

    def analyse(self) -> tuple[float, float]:
        """Return the seconds that the scan and the statistics take."""
        started = perf_counter()
        with transaction.atomic():
            statistics = collect_statistics(self.experiment, database_now())
        gathered = perf_counter()
        make_report(statistics.data, alpha=0.05, planned_units=self.units, is_final=False).to_json()
        return gathered - started, perf_counter() - gathered

    def refresh(self) -> None:
        """Fold the touched units, and store a new result."""
        self.experiment.refresh_from_db()
        refresh_result(self.experiment, database_now())

    def fold(self) -> None:
        """Recompute the values of all touched units."""
        fold_all()

    def query_by_metric(self) -> None:
        """Query each metric with its own statement, as in a manual analysis."""
        for columns in metric_columns(self.experiment, uses_of(self.experiment)):
            value = f"values[{columns.places[0]}]"
            aggregates = f"count({value}), avg({value}), var_samp({value})"
            if columns.metric.quantile_ppm:
                share = columns.metric.quantile_ppm / 1_000_000
                aggregates = f"percentile_cont({share}) WITHIN GROUP (ORDER BY {value})"
            sql = f"""
                SELECT variant_name, {aggregates} FROM experiments_exposurerow
                WHERE experiment_id = %s AND NOT crossed_over GROUP BY variant_name
            """
            with connection.cursor() as cursor:
                cursor.execute(sql, [self.experiment.pk])
                cursor.fetchall()

    def touch(self, units: int) -> None:
        """Add an outcome of the primary metric for each of `units` units."""
        metric = self.experiment.metric
        now = database_now()
        OutcomeRow.objects.bulk_create(
            (
                OutcomeRow(
                    event_id=f"{self.name}-{i}", unit=f"u{i}", metric=metric, value=1.0,
                    occurred_at=now - timedelta(hours=2), received_at=now,
                )
                for i in range(1, units + 1)
            ),
            batch_size=5_000,
        )  # fmt: skip
        TouchedUnit.objects.bulk_create(
            (TouchedUnit(unit=f"u{i}") for i in range(1, units + 1)), batch_size=10_000
        )


def _experiment(name: str, option: str, at: datetime) -> Experiment:
    model = RegisteredModel.objects.create(name=name)
    is_broken_down = option == "breakdown"
    return Experiment.objects.create(
        name=name, model=model, state="running", inclusion_salt="a", variant_salt="b",
        dimensions=["country"] if is_broken_down else [],
        stratify_by="country" if is_broken_down else "",
        covariate_s=604_800 if option == "CUPED" else 0,
        created_by="bench", created_at=at, started_at=at, planned_units=10_000,
    )  # fmt: skip


def _variant(experiment: Experiment, place: int, weight_bp: int, now: datetime) -> None:
    version = ModelVersion.objects.create(
        model=experiment.model, number=place + 1, signature={}, artifact_uri="x",
        artifact_path="x", artifact_sha256="0" * 64, artifact_bytes=1, created_at=now,
    )  # fmt: skip
    Variant.objects.create(
        experiment=experiment, name=f"v{place}", version=version, weight_bp=weight_bp,
        position=place, is_control=place == 0,
    )  # fmt: skip


def _metric(experiment: Experiment, place: int) -> None:
    fields = KINDS[place % len(KINDS)]
    metric = Metric.objects.create(name=f"{experiment.name}-m{place}", **fields)
    role = MetricUse.SECONDARY if place else MetricUse.PRIMARY
    MetricUse.objects.create(experiment=experiment, metric=metric, role=role, position=place)


def _value(columns: Any, slot: int, offset: float) -> str:
    """Return the SQL of a unit's random value; every tenth unit has none."""
    metric = columns.metric
    if metric.kind == Metric.Kind.PROPORTION:
        value = "(random() < 0.1)::int"
    elif slot != columns.places[0] and metric.kind == Metric.Kind.RATIO:
        value = "1 + floor(random() * 5)"
    else:
        value = f"{slot + offset} + random_normal()"
    return f"CASE WHEN i % 10 <> 7 THEN {value} END".replace("%", "%%")
