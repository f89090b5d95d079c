"""Count the outcomes that an experiment attributes to an exposure, and those that it does not.

An outcome counts from its unit's exposure on, less the tolerated clock skew, and within the
metric's window. If a sender's clock is further behind, all its outcomes seem to precede the
exposures that caused them: none counts, and only these counts show why. Every result holds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any

from django.conf import settings

from apps.experiments.columns import columns_of, uses_of
from apps.experiments.models import Experiment, Metric
from apps.experiments.tenant_scope import COUNTS_FOR
from apps.experiments.unit_query import fetch_rows
from apps.experiments.unit_values import sent_as

if TYPE_CHECKING:
    from apps.experiments.sources import Source

# Outcomes are counted from this long before the start, so that a clock off by hours is visible.
REACH = timedelta(days=1)
# A recount takes at most this share of a worker's time; until then the previous counts stay.
RECOUNT_SHARE = 0.05


@dataclass(frozen=True)
class SentMetric:
    """A metric of an experiment, with the metrics under whose names its outcomes are sent."""

    name: str
    ids: tuple[int, ...]
    names: tuple[str, ...]
    window_s: int | None


@dataclass(frozen=True)
class Attribution:
    """Counts of one metric's outcomes: those `in_time` count, the others do not.

    `before`: dated before their unit's exposure by more than the tolerated skew, by `before_mean_s`
    seconds on average. `after_window`: dated after the metric's window. `unknown_units`: their unit
    has no exposure to the experiment, or only by requests of other tenants.
    """

    in_time: int
    before: int
    before_mean_s: int | None
    after_window: int
    unknown_units: int


def sent_metrics(experiment: Experiment) -> list[SentMetric]:
    """Return the experiment's metrics that are computed from outcomes, the primary one first."""
    uses = [u for u in uses_of(experiment) if u.metric.source == Metric.Source.OUTCOMES]
    metrics = []
    for use in uses:
        sent = {sent_as(column) for column in columns_of(experiment, [use])}
        ordered = sorted(sent, key=lambda metric: metric.name)
        metrics.append(
            SentMetric(
                use.metric.name,
                tuple(metric.pk for metric in ordered),
                tuple(metric.name for metric in ordered),
                use.metric.window_s,
            )
        )
    return metrics


def counted_since(experiment: Experiment) -> datetime:
    """Return the time from which outcomes are counted."""
    return (experiment.started_at or experiment.created_at) - REACH


def compute_attribution(
    experiment: Experiment, now: datetime, source: Source, *, is_final: bool
) -> dict[str, Any]:
    """Return the counts by metric as plain JSON, with the time of the count and the tolerated skew.

    The previous result's counts stay while a recount would take too much of a worker's time. The
    final result always has its own.
    """
    previous: dict[str, Any] = experiment.result.get("attribution") or {}
    if previous and not is_final:
        age_s = (now - datetime.fromisoformat(previous["counted_at"])).total_seconds()
        if 0 <= age_s < previous["took_s"] / RECOUNT_SHARE:
            return previous
    started = monotonic()
    sent = sent_metrics(experiment)
    counts = source.attributions(experiment, sent) if sent else []
    named = zip(sent, counts, strict=True)
    return {
        "counted_at": now.isoformat(),
        "took_s": round(monotonic() - started, 3),
        "since": counted_since(experiment).isoformat(),
        "skew_s": settings.OUTCOME_CLOCK_SKEW_S,
        "metrics": {metric.name: asdict(count) for metric, count in named},
    }


def count_in_postgres(experiment: Experiment, sent: Sequence[SentMetric]) -> list[Attribution]:
    """Return the counts of each metric; one scan reads the outcomes of all."""
    parameters: dict[str, Any] = {
        "experiment": experiment.pk,
        "since": counted_since(experiment),
        "skew_s": settings.OUTCOME_CLOCK_SKEW_S,
        "model": experiment.model.name,
        "metrics": sorted({pk for metric in sent for pk in metric.ids}),
    }
    columns: list[str] = []
    for place, metric in enumerate(sent):
        parameters |= {f"ids_{place}": list(metric.ids), f"window_{place}": metric.window_s}
        columns += _columns(place, metric)
    sql = f"""
        SELECT {", ".join(columns)}
        FROM experiments_outcomerow AS outcome LEFT JOIN experiments_exposurerow AS exposed
            ON exposed.experiment_id = %(experiment)s AND exposed.unit = outcome.unit
            AND {COUNTS_FOR}
        WHERE outcome.metric_id = ANY(%(metrics)s) AND outcome.occurred_at >= %(since)s
    """  # noqa: S608 (conditions of ours)
    (row,) = fetch_rows(sql, parameters)
    return [_read(row[place * 5 : place * 5 + 5]) for place in range(len(sent))]


def _columns(place: int, metric: SentMetric) -> list[str]:
    before = "outcome.occurred_at < exposed.at - %(skew_s)s * interval '1 second'"
    lead = "extract(epoch FROM exposed.at - outcome.occurred_at)"
    after = "FALSE"
    if metric.window_s is not None:
        after = f"outcome.occurred_at >= exposed.at + %(window_{place})s * interval '1 second'"
    own = f"outcome.metric_id = ANY(%(ids_{place})s)"
    known = f"{own} AND exposed.unit IS NOT NULL"
    return [
        f"count(*) FILTER (WHERE {known} AND NOT {before} AND NOT {after})",
        f"count(*) FILTER (WHERE {known} AND {before})",
        f"avg({lead}) FILTER (WHERE {known} AND {before})",
        f"count(*) FILTER (WHERE {known} AND {after})",
        # An outcome without a unit belongs to a version: it names a request.
        f"count(*) FILTER (WHERE {own} AND exposed.unit IS NULL AND outcome.unit <> '')",
    ]


def _read(row: Sequence[Any]) -> Attribution:
    in_time, before, lead_s, after, unknown = row
    return Attribution(in_time, before, None if lead_s is None else round(lead_s), after, unknown)
