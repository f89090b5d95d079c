"""Build the template context of a result: an experiment's current one, or a snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.db.models import F, Func, JSONField, Value, Window
from django.db.models.functions import RowNumber

from apps.experiments import charts
from apps.experiments.charts.trend import Point
from apps.experiments.models import Experiment, ResultSnapshot
from apps.experiments.result_tables.attribution import attribution_table
from apps.experiments.result_tables.breakdowns import breakdowns, held_out
from apps.experiments.result_tables.legacy_results import upgrade_schema
from apps.experiments.result_tables.notices import notices
from apps.experiments.result_tables.phases import phase_rows
from apps.experiments.result_tables.results import (
    MetricRow,
    group_by_role,
    metric_rows,
    select_metric,
)
from apps.experiments.result_tables.wording import Scale, scale_of
from apps.experiments.selectors.experiments import awaits_final, is_over, placements
from apps.experiments.ship import shipping_doubts
from apps.experiments.snapshots import snapshots_of
from apps.experiments.states import ExperimentState

E = ExperimentState
# A chart of this width cannot show more points.
COURSE_MAX = 300
SNAPSHOTS_SHOWN = 50


def experiment_context(experiment: Experiment, metric: str | None) -> dict[str, Any]:
    """Return the context of the page and its live fragment; `metric` is the one shown in full."""
    result = experiment.result
    state = E(experiment.state)
    waits = awaits_final(experiment, result)
    winner = result.get("winner")
    return {
        "experiment": experiment,
        **result_context(experiment, result, metric),
        "notices": notices(result, experiment.refresh_error, awaits_final=waits),
        "made_at": experiment.refreshed_at,
        "awaits_final": waits,
        "placements": placements(experiment),
        "events": list(experiment.events.order_by("-id")),
        "weights": list(experiment.weights.order_by("-at")),
        "snapshots": list(snapshots_of(experiment).defer("result")[:SNAPSHOTS_SHOWN]),
        "is_over": is_over(experiment),
        "is_live": not is_over(experiment) or waits,
        "is_draft": state is E.DRAFT,
        "can_pause": state is E.RUNNING,
        "can_resume": state is E.PAUSED,
        "can_stop": state in {E.PREPARING, E.RUNNING, E.PAUSED},
        "is_under_way": state in {E.RUNNING, E.PAUSED},
        "ships": winner if winner and not shipping_doubts(result, winner) else None,
    }


def snapshot_context(snapshot: ResultSnapshot, metric: str | None) -> dict[str, Any]:
    """Return the context of a snapshot's page."""
    experiment = snapshot.experiment
    result = snapshot.result
    return {
        "snapshot": snapshot,
        "experiment": experiment,
        **result_context(experiment, result, metric, until=snapshot.at),
        "notices": notices(result),
        "made_at": snapshot.at,
        "is_over": True,
    }


def result_context(
    experiment: Experiment,
    stored: Mapping[str, Any],
    metric: str | None,
    until: datetime | None = None,
) -> dict[str, Any]:
    uses = list(experiment.metric_uses.select_related("metric"))
    result = upgrade_schema(stored, experiment.metric.name)
    scales = {use.metric.name: scale_of(use.metric.kind, use.metric.source) for use in uses}
    variants = list(experiment.variants.select_related("version"))
    rows = metric_rows(result, [variant.name for variant in variants], scales)
    shown = select_metric(rows, metric)
    cells = {cell.arm: cell for cell in shown.cells} if shown else {}
    quality = result.get("quality") or {}
    return {
        "result": result,
        "is_final": result.get("phase") == "final",
        "groups": group_by_role(rows),
        "metric_names": [row.name for row in rows],
        # Every request of the page sends it, to keep the chosen metric.
        "metric_query": f"?{urlencode({'metric': shown.name})}" if shown else "",
        "shown": shown,
        "variants": [(variant, cells.get(variant.name)) for variant in variants],
        "quality": quality,
        "phases": phase_rows(result, [variant.name for variant in variants]),
        "alpha_percent": f"{experiment.alpha_ppm / 10_000:g}",
        # The level of one p: the sequential and the fixed reading have half of alpha each.
        "reading_percent": f"{experiment.alpha_ppm / 20_000:g}",
        "attribution": attribution_table(result),
        "held_out": held_out(result, scales),
        **_shown_context(experiment, result, shown, scales, until),
    }


def _shown_context(
    experiment: Experiment,
    result: Mapping[str, Any],
    shown: MetricRow | None,
    scales: Mapping[str, Scale],
    until: datetime | None,
) -> dict[str, Any]:
    """Return breakdowns and figures of the metric that is shown in full."""
    name = shown.name if shown else experiment.metric.name
    matches = [entry for entry in result.get("metrics", ()) if entry["name"] == name]
    entry: dict[str, Any] = matches[0] if matches else {}
    scale = scales.get(name) or scale_of(entry.get("kind", ""))
    arms = [arm["name"] for arm in entry.get("arms", ())]
    return {
        "breakdowns": breakdowns(result, name, scale),
        "figures": {
            "intervals": charts.interval_figure(entry, scale),
            "course": charts.trend_figure(course(experiment, name, until), arms, scale),
            "exposures": charts.exposure_figure(dict(result)),
            "distribution": charts.distribution_figure(entry, scale),
            "posterior": charts.posterior_figure(entry, scale),
        },
    }


def course(experiment: Experiment, metric: str, until: datetime | None = None) -> list[Point]:
    """Return up to `COURSE_MAX` evenly spaced points of a metric's result, including the last.

    Only this metric's numbers are read, although a point holds those of all metrics.
    """
    points = experiment.points.filter(**({"at__lte": until} if until else {}))
    step = max(1, -(-points.count() // COURSE_MAX))
    rows = points.annotate(
        place=Window(RowNumber(), order_by=[F("at").desc(), F("id").desc()]),
        # Not a key transform: it takes a name of digits for a list index.
        own=Func(
            F("numbers"),
            Value(metric),
            function="jsonb_extract_path",
            output_field=JSONField(),
        ),
    )
    if step > 1:
        rows = rows.annotate(rest=(F("place") - 1) % step).filter(rest=0)
    numbers = rows.order_by("at", "id").values_list("at", "own")
    return [(round(at.timestamp() * 1_000), own) for at, own in numbers if own]
