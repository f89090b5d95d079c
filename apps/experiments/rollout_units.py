"""Reads a rollout's units as those of an experiment: two arms, and a weight phase for each step.

The values come from the SQL of experiments (`unit_values`); the same scan applies caps, windows and
missing outcomes, and the statistics come from the same source. The assignment to arms differs:

* a unit that was exposed to both versions is in no arm;
* a unit of stable whose bucket now belongs to the canary is in no arm: of these units, frequent
  visitors were exposed to both versions, so that only rare visitors would remain;
* at 100 % there is no control: the statistics are then as of the end of the last step with one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from django.db import connection
from django.db.models import Min

from apps.experiments.columns import columns_of, metric_columns
from apps.experiments.distributions import Counts, Edges, Moments
from apps.experiments.models import Experiment, Metric, MetricUse
from apps.experiments.outcome_judge import CANARY, CONTROL
from apps.experiments.phases import WeightPhase
from apps.experiments.postgres import Postgres
from apps.experiments.stats.data import MetricData
from apps.experiments.sufficient_statistics import collect_metrics
from apps.experiments.unit_query import Scan
from apps.experiments.unit_values import unit_values
from apps.rollouts.models import Rollout
from apps.rollouts.plans import WHOLE_BP, from_json
from apps.rollouts.states import Phase

MET, ROWS = "rollout_met", "rollout_units"

# Temporary tables for rows that several queries read. They exist within the caller's savepoint.
CREATE_ROWS = f"""
    CREATE TEMPORARY TABLE {MET} (
        unit text, bucket integer, variant_name text, at timestamptz, tenant text,
        also_tenants text[]
    ) ON COMMIT DROP;
    CREATE TEMPORARY TABLE {ROWS} (
        experiment_id uuid, unit text, variant_name text, at timestamptz, crossed_over boolean,
        bucket integer, tenant text, attributes jsonb, values float8[]
    ) ON COMMIT DROP
"""
DROP_ROWS = f"DROP TABLE {MET}, {ROWS}"
EXPOSED = """
    WITH bounded AS (
        SELECT unit, bucket, tenant, also_tenants,
            CASE WHEN canary_at < %(end)s THEN canary_at END AS canary_at,
            CASE WHEN control_at < %(end)s THEN control_at END AS control_at
        FROM experiments_rolloutexposure WHERE rollout_id = %(rollout)s
    ), met AS (
        SELECT unit, bucket, tenant, also_tenants, canary_at IS NOT NULL AS is_canary,
            coalesce(canary_at, control_at) AS at,
            canary_at IS NOT NULL AND control_at IS NOT NULL AS is_both,
            canary_at IS NULL AND bucket < %(weight_bp)s AS is_leaving
        FROM bounded WHERE canary_at IS NOT NULL OR control_at IS NOT NULL
    )
"""
COUNT_UNITS = f"""{EXPOSED}
    SELECT count(*) FILTER (WHERE is_both), count(*) FILTER (WHERE is_leaving),
        count(*) FILTER (WHERE is_canary AND NOT is_both),
        count(*) FILTER (WHERE NOT is_canary AND NOT is_leaving)
    FROM met
"""  # noqa: S608 (constants of ours)
FILL_MET = f"""
    INSERT INTO {MET} {EXPOSED}
    SELECT unit, bucket, CASE WHEN is_canary THEN '{CANARY}' ELSE '{CONTROL}' END, at,
        tenant, also_tenants
    FROM met WHERE NOT is_both AND NOT is_leaving
"""  # noqa: S608 (constants of ours)
# The planner needs the number of units: for 100,000, lookups take three times as long as a join,
# and for a few units a join reads the outcomes of all units.
COUNT_MET = f"ANALYZE {MET}"
FILL_ROWS = f"""
    INSERT INTO {ROWS}
    SELECT %(rollout)s, exposed.unit, variant_name, exposed.at, FALSE, bucket, '',
        NULL, {{array}}
    FROM {MET} AS exposed LEFT JOIN experiments_outcomerow AS outcome ON {{joins}}
    GROUP BY exposed.unit, variant_name, exposed.at, bucket
"""  # noqa: S608 (constants of ours)


@dataclass(frozen=True)
class Span:
    """The steps of a rollout with a control, by index, and their start times.

    `until` is the end of the last of them, None while it runs; `weight_bp` is its share.
    """

    steps: tuple[int, ...]
    starts: tuple[datetime, ...]
    weight_bp: int
    until: datetime | None


@dataclass(frozen=True)
class RolloutUnits:
    """A metric's statistics, the units of each arm, and the units in no arm."""

    data: MetricData
    canary: int
    control: int
    met_both: int
    leaving: int


class _Source(Postgres):
    """PostgreSQL without the counts for charts, which checks do not need."""

    def distributions(self, scan: Scan, moments: Moments) -> tuple[Edges, Counts]:
        return {}, {}


def span_of(rollout: Rollout) -> Span | None:
    """Return the steps so far that have a control, or None."""
    steps = from_json(rollout.plan_document).steps[: rollout.step_index + 1]
    begun = rollout.events.filter(to_state=Phase.BAKING, step_index__gte=0)
    starts = dict(begun.values_list("step_index").annotate(at=Min("at")))
    controlled = [i for i, step in enumerate(steps) if step.weight_bp < WHOLE_BP and i in starts]
    if not controlled:
        return None
    last = controlled[-1]
    return Span(
        steps=tuple(controlled),
        starts=tuple(starts[index] for index in controlled),
        weight_bp=steps[last].weight_bp,
        until=min((at for index, at in starts.items() if index > last), default=None),
    )


def read_units(
    rollout: Rollout,
    metric: Metric,
    span: Span,
    now: datetime,
    *,
    covariate_s: int = 0,
    before_each: Callable[[], None] = lambda: None,
) -> RolloutUnits:
    """Return the metric's statistics as of `now`, or of the end of the span.

    `metric` has `outcomes_of` and `divided_by` selected. The caller must open a savepoint.
    `before_each` is called before each long statement, so that the caller can limit its time.
    """
    # Never saved; it only carries the definition of the query.
    experiment = Experiment(pk=rollout.pk, covariate_s=covariate_s)
    uses = [MetricUse(metric=metric, role=MetricUse.GUARDRAIL, position=0)]
    columns = columns_of(experiment, uses)
    values = unit_values(columns, rollout.model.name, covariate_s, span.until)
    parameters = values.parameters | {
        "rollout": rollout.pk,
        "end": span.until or "infinity",
        "weight_bp": span.weight_bp,
    }
    with connection.cursor() as cursor:
        before_each()
        cursor.execute(COUNT_UNITS, parameters)
        both, leaving, canary, control = cursor.fetchone()
        cursor.execute(CREATE_ROWS)
        for sql in (FILL_MET, COUNT_MET, FILL_ROWS.format(array=values.array, joins=values.joins)):
            before_each()
            cursor.execute(sql, parameters)
        before_each()
        scan = Scan(
            experiment,
            (CONTROL, CANARY),
            tuple(metric_columns(experiment, uses)),
            tuple(WeightPhase(at, (), {}) for at in span.starts),
            span.until or now,
            rows=ROWS,
        )
        (data,) = collect_metrics(scan, _Source())
        cursor.execute(DROP_ROWS)
    return RolloutUnits(data, canary, control, both, leaving)
