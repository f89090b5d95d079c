"""Create, describe and delete metrics. Only the description of a metric ever changes."""

from __future__ import annotations

import math
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.db.models.deletion import ProtectedError

from apps.experiments.models import Metric, MetricUse, OutcomeRow
from apps.experiments.unique_names import insert_named
from apps.lib.actors import Actor
from apps.lib.clock import database_now
from apps.lib.errors import Conflict, Invalid
from apps.models.audit import record_audit
from apps.rollouts import snapshots
from apps.rollouts.models import Plan, Rollout
from apps.rollouts.plans import PlanDocument, document_of, from_json
from apps.rollouts.publication import publish_table
from apps.rollouts.states import LIVE_PHASES
from contract.refusals import MetricRule

KIND, SOURCE, PER_UNIT = Metric.Kind, Metric.Source, Metric.PerUnit
# Older outcomes are refused on arrival.
WINDOW_MAX_S = 365 * 86_400
VALUE_MAX = 1e100
PPM = 1_000_000
# How a unit's outcomes are combined by default.
DEFAULT_PER_UNIT = {KIND.PROPORTION: PER_UNIT.FIRST, KIND.RATIO: PER_UNIT.SUM}
# Pages below `metrics/` that are not a metric's page.
RESERVED_METRICS = {"new"}
# Lower is better for these by default.
COSTS = {SOURCE.LATENCY, SOURCE.ERRORS}


@transaction.atomic
def create_metric(
    *,
    name: str,
    kind: str,
    direction: str | None = None,
    description: str = "",
    source: str = SOURCE.OUTCOMES,
    outcomes_of: Metric | None = None,
    divided_by: Metric | None = None,
    per_unit: str | None = None,
    missing_is_zero: bool = False,
    quantile_ppm: int | None = None,
    cap: float | None = None,
    window_s: int | None = None,
    actor: Actor,
) -> Metric:
    """Define a metric.

    `direction` None: lower is better for latency and errors, higher for all others. `per_unit`
    None: the first outcome for a proportion, the sum for a ratio, the mean for all others.

    Raises:
        Invalid: a field is out of range, or two fields contradict each other.
        Conflict: the name is taken.
    """
    if name in RESERVED_METRICS:
        raise Invalid(
            f"{name!r} is reserved: a page has it in its URL; choose another name", field="name"
        )
    if kind not in KIND.values:
        raise Invalid(
            f"unknown kind {kind!r}; expected one of {', '.join(KIND.values)}", field="kind"
        )
    if source not in SOURCE.values:
        known = ", ".join(SOURCE.values)
        raise Invalid(f"unknown source {source!r}; expected one of {known}", field="source")
    _check_outcomes(kind, source, outcomes_of, divided_by, per_unit)
    _check_source(kind, source, missing_is_zero, window_s)
    _check_numbers(kind, quantile_ppm, cap, window_s)
    metric = Metric(
        name=name,
        kind=kind,
        direction=direction or _default_direction(source),
        description=description,
        source=source,
        outcomes_of=outcomes_of,
        divided_by=divided_by,
        per_unit=per_unit or DEFAULT_PER_UNIT.get(KIND(kind), PER_UNIT.MEAN),
        missing_is_zero=missing_is_zero,
        quantile_ppm=quantile_ppm,
        cap=cap,
        window_s=window_s,
    )
    insert_named(metric, f"A metric named {name} already exists.")
    record_audit(actor=actor, action="metric.created", target=name, after=_describe(metric))
    publish_table(reason=f"metric {name} defined", actor=actor, now=database_now())
    return metric


def register() -> None:
    """Add the metrics to routing tables."""
    snapshots.METRICS[:] = [metric_rules]


def metric_rules() -> dict[str, MetricRule]:
    """Return the rule for outcomes of each metric, by metric name."""
    return {
        metric.name: MetricRule(
            is_binary=metric.kind == KIND.PROPORTION, refusal=outcome_refusal_reason(metric) or ""
        )
        for metric in Metric.objects.select_related("outcomes_of").order_by("name")
    }


def _default_direction(source: str) -> str:
    return Metric.Direction.DECREASE if source in COSTS else Metric.Direction.INCREASE


def _describe(metric: Metric) -> dict[str, Any]:
    """Return the metric's non-empty fields for the audit log."""
    fields = {
        field.name: getattr(metric, field.attname)
        for field in Metric._meta.fields
        if field.name not in {"id", "name", "outcomes_of", "divided_by"}
    }
    fields["outcomes_of"] = metric.outcomes_of and metric.outcomes_of.name
    fields["divided_by"] = metric.divided_by and metric.divided_by.name
    return {name: value for name, value in fields.items() if value not in (None, "", False)}


def _check_outcomes(
    kind: str,
    source: str,
    outcomes_of: Metric | None,
    divided_by: Metric | None,
    per_unit: str | None,
) -> None:
    """Raise Invalid for fields about outcomes that do not fit kind and source."""
    if source != SOURCE.OUTCOMES:
        for field, value in [
            ("outcomes_of", outcomes_of),
            ("divided_by", divided_by),
            ("per_unit", per_unit),
        ]:
            if value is not None:
                raise Invalid(f"the data plane measures {source}; omit {field}", field=field)
        return
    _check_per_unit(kind, per_unit)
    if kind == KIND.RATIO and divided_by is None:
        raise Invalid("a ratio of outcomes needs the metric to divide by", field="divided_by")
    if kind != KIND.RATIO and divided_by is not None:
        raise Invalid(f"only a ratio has a denominator; this is a {kind}", field="divided_by")
    for field, other in [("outcomes_of", outcomes_of), ("divided_by", divided_by)]:
        if other is not None:
            _check_other(field, other)
    if kind == KIND.PROPORTION and outcomes_of is not None and outcomes_of.kind != KIND.PROPORTION:
        raise Invalid(
            f"outcomes of {outcomes_of.name} are amounts; a proportion needs 0 or 1",
            field="outcomes_of",
        )


def _check_per_unit(kind: str, per_unit: str | None) -> None:
    if per_unit is None:
        return
    if per_unit not in PER_UNIT.values:
        raise Invalid(
            f"unknown value {per_unit!r}; expected one of {', '.join(PER_UNIT.values)}",
            field="per_unit",
        )
    if kind == KIND.RATIO and per_unit != PER_UNIT.SUM:
        raise Invalid("a ratio always sums a unit's outcomes; omit per_unit", field="per_unit")
    if kind == KIND.PROPORTION and per_unit not in {PER_UNIT.FIRST, PER_UNIT.MAX}:
        raise Invalid(f"a proportion takes first or max, not {per_unit}", field="per_unit")


def _check_other(field: str, other: Metric) -> None:
    """Raise Invalid when `other` has no outcomes of its own."""
    if other.source != SOURCE.OUTCOMES:
        raise Invalid(f"{other.name} has no outcomes; the data plane measures it", field=field)
    if other.outcomes_of_id is not None:
        raise Invalid(
            f"{other.name} uses the outcomes of {other.outcomes_of}; "
            f"name {other.outcomes_of} instead",
            field=field,
        )


def _check_source(kind: str, source: str, missing_is_zero: bool, window_s: int | None) -> None:
    """Raise Invalid for fields that do not fit a metric measured by the data plane."""
    if source == SOURCE.OUTCOMES:
        return
    if source == SOURCE.LATENCY and kind == KIND.PROPORTION:
        raise Invalid("latency is not a proportion; use mean, ratio or quantile", field="kind")
    if missing_is_zero:
        raise Invalid(
            f"a unit without {source} is not measured yet; omit missing_is_zero",
            field="missing_is_zero",
        )
    if window_s is not None:
        raise Invalid(f"{source} counts while the experiment runs; omit window_s", field="window_s")


def _check_numbers(
    kind: str, quantile_ppm: int | None, cap: float | None, window_s: int | None
) -> None:
    if kind == KIND.QUANTILE and quantile_ppm is None:
        raise Invalid("required for a quantile; 950000 is the 95 % quantile", field="quantile_ppm")
    if kind != KIND.QUANTILE and quantile_ppm is not None:
        raise Invalid(f"only a quantile has it; this is a {kind}", field="quantile_ppm")
    if quantile_ppm is not None and not 1 <= quantile_ppm < PPM:
        raise Invalid(f"quantile_ppm is {quantile_ppm}; it must be 1 to {PPM - 1} (millionths)")
    if cap is not None and kind in {KIND.PROPORTION, KIND.QUANTILE}:
        raise Invalid(f"large values do not affect a {kind}; omit cap", field="cap")
    if cap is not None and not (math.isfinite(cap) and abs(cap) <= VALUE_MAX):
        raise Invalid(f"cap is {cap}; it must be a number up to {VALUE_MAX:g}")
    if window_s is not None and not 1 <= window_s <= WINDOW_MAX_S:
        raise Invalid(f"window_s is {window_s}; it must be 1 to {WINDOW_MAX_S} seconds (a year)")


def outcome_refusal_reason(metric: Metric) -> str | None:
    """Return why outcomes of `metric` are refused, or None. Select `outcomes_of` with it."""
    if metric.source != SOURCE.OUTCOMES:
        return f"the data plane measures {metric.source} itself; outcomes are not accepted"
    if metric.outcomes_of_id is not None:
        return f"the metric uses the outcomes of {metric.outcomes_of}; send them under that name"
    return None


@transaction.atomic
def edit_metric(*, metric: Metric, description: str, actor: Actor) -> Metric:
    """Change a metric's description, its only field that can change."""
    row = Metric.objects.select_for_update(of=("self",)).get(pk=metric.pk)
    before, row.description = row.description, description
    row.save(update_fields=["description"])
    record_audit(
        actor=actor,
        action="metric.described",
        target=row.name,
        before={"description": before},
        after={"description": description},
    )
    return row


@transaction.atomic
def delete_metric(*, metric: Metric, actor: Actor) -> None:
    """Delete an unused metric. Raises Conflict that names its user."""
    # Creating an experiment locks its metrics too, so it cannot lose one in between.
    row = Metric.objects.select_for_update(of=("self",)).get(pk=metric.pk)
    if user := _user_of(row):
        raise Conflict(f"metric {row.name} cannot be deleted: {user}")
    before = _describe(row)
    try:
        row.delete()
    except ProtectedError:
        raise Conflict(f"metric {row.name} cannot be deleted: it is in use") from None
    record_audit(actor=actor, action="metric.deleted", target=row.name, before=before)
    publish_table(reason=f"metric {row.name} deleted", actor=actor, now=database_now())


def _user_of(metric: Metric) -> str:
    """Return a description of one user of the metric, or an empty string."""
    use = MetricUse.objects.filter(metric=metric).select_related("experiment").first()
    if use is not None:
        return f"experiment {use.experiment.name} uses it"
    other = Metric.objects.filter(Q(outcomes_of=metric) | Q(divided_by=metric)).first()
    if other is not None:
        return f"metric {other.name} is computed from it"
    if OutcomeRow.objects.filter(metric=metric).exists():
        return "it has recorded outcomes"
    for plan in Plan.objects.prefetch_related("steps"):
        if _checks_metric(document_of(plan), metric.name):
            return f"plan {plan.name} checks it"
    for rollout in Rollout.objects.filter(phase__in=LIVE_PHASES).exclude(plan_document={}):
        if _checks_metric(from_json(rollout.plan_document), metric.name):
            return f"the rollout of {rollout.target} checks it"
    return ""


def _checks_metric(plan: PlanDocument, name: str) -> bool:
    checks = (check for step in plan.steps for check in step.check_documents)
    return any(check.settings.get("metric") == name for check in checks)
