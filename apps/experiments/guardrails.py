"""Outcome metrics as guardrails of rollouts: is the canary not worse than stable by a margin?

Observes what the tables hold, as sufficient statistics, and judges those alone, so that the
decision log can repeat the answer. `apps.rollouts` knows nothing of outcomes; `register` tells it.

What counts, per unit, is what counts in experiments (`results`), and besides:

* only outcomes from the unit's first meeting with its side on;
* no unit that met both sides, and none of stable's that belongs to the canary by now: whoever of
  those came back has met both, so that the others are those who come seldom;
* at 100 % there is no control: then as of the end of the last step that had one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from django.db import OperationalError, connection, transaction
from django.db.models import Min

from apps.experiments.models import Metric
from apps.experiments.stats.data import MetricKind
from apps.experiments.stats.moments import Moments
from apps.experiments.stats.noninferiority import NonInferiority, Stratum, compare_strata
from apps.rollouts import check_kinds, observed, observers
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.checks import CheckSettings
from apps.rollouts.models import Rollout
from apps.rollouts.observed import Observed
from apps.rollouts.plans import WHOLE_BP, from_json
from apps.rollouts.states import Phase
from apps.rollouts.verdicts import JSON, CheckResult, Verdict

# The rollout's row is locked meanwhile, and an abort waits for it.
COUNTING_MS = 3_000

LIMIT_TIME = "SELECT set_config('statement_timeout', %s, true)"

EXPOSED = """
    WITH bounded AS (
        SELECT unit, bucket,
            CASE WHEN canary_at < %(until)s THEN canary_at END AS canary_at,
            CASE WHEN control_at < %(until)s THEN control_at END AS control_at
        FROM experiments_rolloutexposure WHERE rollout_id = %(rollout)s
    ), exposed AS (
        SELECT unit, canary_at IS NOT NULL AS is_canary,
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
    FROM exposed
"""  # noqa: S608 (constants of ours)
# An exposure that a fast clock dated before the first step belongs to it. Sums of a constant such
# as 0.3 are not exact, and would look like a tiny spread.
SUM_OUTCOMES = f"""{EXPOSED}, per_unit AS (
        SELECT exposed.is_canary,
            greatest(1, width_bucket(exposed.at, %(steps)s::timestamptz[])) - 1 AS step,
            CASE WHEN %(is_proportion)s
                THEN (array_agg(outcome.value ORDER BY outcome.occurred_at, outcome.event_id))[1]
                ELSE avg(outcome.value) END AS y
        FROM exposed JOIN experiments_outcomerow AS outcome
            ON outcome.metric_id = %(metric)s AND outcome.unit = exposed.unit
            AND outcome.occurred_at >= exposed.at AND outcome.occurred_at < %(until)s
        WHERE NOT exposed.is_both AND NOT exposed.is_leaving
        GROUP BY exposed.is_canary, exposed.at, exposed.unit
    )
    SELECT step, is_canary, count(*), CASE WHEN min(y) = max(y) THEN min(y) ELSE avg(y) END,
        CASE WHEN min(y) = max(y) THEN 0 ELSE regr_sxx(y, y) END
    FROM per_unit GROUP BY step, is_canary ORDER BY step
"""  # noqa: S608 (constants of ours)


@dataclass(frozen=True)
class Span:
    """What of a rollout has a control: until when, at which share, and when its steps began."""

    until: datetime
    weight_bp: int
    step_index: int
    step_starts: list[datetime]


def register() -> None:
    """Let rollouts ask for outcomes, and plans for metrics."""
    observers.DATABASE[check_kinds.OUTCOME] = observe_outcome
    observed.OBSERVED[check_kinds.OUTCOME] = judge_outcome
    check_kinds.let_look(check_kinds.OUTCOME, problem_of_metric)


def problem_of_metric(settings: Mapping[str, Any]) -> str:
    """Return in words why no rollout can be judged by this metric and margin, or nothing."""
    name, margin = settings.get("metric"), settings.get("margin")
    if not isinstance(name, str) or isinstance(margin, bool) or not isinstance(margin, int | float):
        return ""
    metric = Metric.objects.filter(name=name).first()
    if metric is None:
        return f"there is no metric {name!r}. There are: {_known_metrics()}"
    if metric.kind == Metric.Kind.PROPORTION and margin >= 1:
        return f"margin must be below 1, as {name} is a proportion: 0.01 is one percentage point"
    return ""


def _known_metrics() -> str:
    names = list(Metric.objects.values_list("name", flat=True)[:20])
    return ", ".join(names) or "none"


def observe_outcome(rollout: Rollout, check: CheckDocument, now: datetime) -> dict[str, JSON]:
    """Return the metric's sufficient statistics per step and side, and who was left out."""
    name = check.setting("metric")
    metric = Metric.objects.filter(name=name).first()
    if metric is None:
        return {"problem": f"there is no metric {name!r} any more"}
    span = _span_of(rollout, now)
    if span is None:
        return {"metric": name, "nothing": "no step so far had a control"}
    try:
        with transaction.atomic():
            counted, sums = _count(rollout, metric, span)
    except OperationalError as error:
        if not _is_canceled(error):
            raise
        return {"problem": f"outcomes of {name} were not counted within {COUNTING_MS / 1_000:g} s"}
    both, leaving, canary, control = counted
    return {
        "metric": name,
        "kind": metric.kind,
        "direction": metric.direction,
        "until_step": span.step_index,
        "strata": sums,
        "exposed": {"canary": canary, "control": control},
        "met_both": both,
        "leaving": leaving,
    }


def _span_of(rollout: Rollout, now: datetime) -> Span | None:
    steps = from_json(rollout.plan_document).steps[: rollout.step_index + 1]
    begun = rollout.events.filter(to_state=Phase.BAKING, step_index__gte=0)
    starts = dict(begun.values_list("step_index").annotate(at=Min("at")))
    controlled = [i for i, step in enumerate(steps) if step.weight_bp < WHOLE_BP and i in starts]
    if not controlled:
        return None
    last = controlled[-1]
    return Span(
        until=min((at for index, at in starts.items() if index > last), default=now),
        weight_bp=steps[last].weight_bp,
        step_index=last,
        step_starts=[starts[index] for index in controlled],
    )


def _count(
    rollout: Rollout, metric: Metric, span: Span
) -> tuple[tuple[int, int, int, int], list[JSON]]:
    parameters: dict[str, Any] = {
        "rollout": rollout.pk,
        "metric": metric.pk,
        "is_proportion": metric.kind == Metric.Kind.PROPORTION,
        "until": span.until,
        "weight_bp": span.weight_bp,
        "steps": span.step_starts,
    }
    strata: dict[int, dict[str, JSON]] = {}
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('statement_timeout')")
        usual = cursor.fetchone()
        cursor.execute(LIMIT_TIME, [str(COUNTING_MS)])
        cursor.execute(COUNT_UNITS, parameters)
        counted = cursor.fetchone()
        cursor.execute(SUM_OUTCOMES, parameters)
        for step, is_canary, n, mean, m2 in cursor:
            side = "canary" if is_canary else "control"
            stratum = strata.setdefault(step, {"step": step})
            stratum[side] = {"n": n, "mean": mean, "m2": m2}
        cursor.execute(LIMIT_TIME, usual)
    return counted, list(strata.values())


def _is_canceled(error: OperationalError) -> bool:
    return getattr(error.__cause__, "sqlstate", "") == "57014"


def judge_outcome(check: CheckDocument, seen: Observed, settings: CheckSettings) -> CheckResult:
    """Pass above −margin, fail below it, by bounds that hold at every look; else not decided."""
    metric, margin = check.setting("metric"), float(check.setting("margin"))
    if not any(_side(stratum, "canary").n for stratum in seen.get("strata", ())):
        why = seen.get("nothing") or "no unit of the canary has an outcome yet"
        return CheckResult(check.label, Verdict.NO_DATA, f"{metric}: {why}", _left_out(seen))
    found = compare_strata(
        [Stratum(_side(each, "canary"), _side(each, "control")) for each in seen["strata"]],
        kind=cast(MetricKind, seen["kind"]),
        is_increase_better=seen["direction"] == Metric.Direction.INCREASE,
        alpha_pass=settings.alpha_promote,
        alpha_fail=settings.alpha / settings.guardrails,
    )
    verdict, why = _decide(found, margin)
    told = (
        f"{metric} {found.canary.mean:.4g} vs stable {found.control.mean:.4g}, margin {margin:g}, "
        f"n={found.canary.n} vs {found.control.n}"
    )
    return CheckResult(
        check.label, verdict, f"{told}: {why}", {**_record(found, margin), **_left_out(seen)}
    )


def _side(stratum: Mapping[str, Any], side: str) -> Moments:
    return Moments(**stratum[side]) if side in stratum else Moments()


def _decide(found: NonInferiority, margin: float) -> tuple[Verdict, str]:
    if found.silent is not None or found.low is None or found.high is None:
        return Verdict.INSUFFICIENT_SAMPLE, found.silent or "no bounds yet"
    if found.high < -margin:
        return Verdict.FAIL, f"proven worse by more than the margin, by {-found.high:.3g} at least"
    if found.low > -margin:
        return Verdict.PASS, (
            f"proven not worse by the margin, by {max(0.0, -found.low):.3g} at most"
        )
    bounds = f"better by {found.low:.3g} to {found.high:.3g}"
    if found.difference is not None and found.difference < -margin:
        return Verdict.INCONCLUSIVE, f"worse than the margin, but not proven ({bounds})"
    return Verdict.INSUFFICIENT_SAMPLE, f"too few to tell ({bounds})"


def _record(found: NonInferiority, margin: float) -> dict[str, JSON]:
    return {
        "n": found.canary.n,
        "canary_n": found.canary.n,
        "canary_mean": found.canary.mean,
        "control_n": found.control.n,
        "control_mean": found.control.mean,
        "better_by": found.difference,
        "low": found.low,
        "high": found.high,
        "margin": margin,
    }


def _left_out(seen: Observed) -> dict[str, JSON]:
    return {name: seen.get(name) for name in ("exposed", "met_both", "leaving", "until_step")}
