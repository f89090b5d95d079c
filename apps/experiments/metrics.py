"""Making, describing and deleting metrics. A metric is never changed but for its description."""

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
# No outcome may be older than that when it comes in.
WINDOW_MAX_S = 365 * 86_400
VALUE_MAX = 1e100
PPM = 1_000_000
# How a unit's outcomes make its value when nothing is said.
DEFAULT_PER_UNIT = {KIND.PROPORTION: PER_UNIT.FIRST, KIND.RATIO: PER_UNIT.SUM}
# Pages below `metrics/` that are no metric's.
RESERVED_METRICS = {"new"}
# Less of these is better, when nothing is said.
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

    `direction` None: less is better of latency and errors, more of all else. `per_unit` None:
    the first outcome of a proportion, the sum of a ratio, the mean of all else.

    Raises:
        Invalid: a field is out of its range, or two of them contradict each other.
        Conflict: a metric of that name exists.
    """
    if name in RESERVED_METRICS:
        raise Invalid(f"name: {name} is the address of a page; choose another one")
    if kind not in KIND.values:
        raise Invalid(f"kind: unknown kind {kind!r}; expected one of {', '.join(KIND.values)}")
    if source not in SOURCE.values:
        known = ", ".join(SOURCE.values)
        raise Invalid(f"source: unknown source {source!r}; expected one of {known}")
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
    insert_named(metric, f"A metric named {name} exists already.")
    record_audit(actor=actor, action="metric.created", target=name, after=_told(metric))
    publish_table(reason=f"metric {name} defined", actor=actor, now=database_now())
    return metric


def register() -> None:
    """Let routing tables say what metrics there are."""
    snapshots.METRICS[:] = [metric_rules]


def metric_rules() -> dict[str, MetricRule]:
    """Return what outcomes may say of each metric, by its name."""
    return {
        metric.name: MetricRule(
            is_binary=metric.kind == KIND.PROPORTION, refusal=why_not_an_outcome(metric) or ""
        )
        for metric in Metric.objects.select_related("outcomes_of").order_by("name")
    }


def _default_direction(source: str) -> str:
    return Metric.Direction.DECREASE if source in COSTS else Metric.Direction.INCREASE


def _told(metric: Metric) -> dict[str, Any]:
    """Return the metric for the audit log: what it says that is not empty."""
    told = {
        field.name: getattr(metric, field.attname)
        for field in Metric._meta.fields
        if field.name not in {"id", "name", "outcomes_of", "divided_by"}
    }
    told["outcomes_of"] = metric.outcomes_of and metric.outcomes_of.name
    told["divided_by"] = metric.divided_by and metric.divided_by.name
    return {name: value for name, value in told.items() if value not in (None, "", False)}


def _check_outcomes(
    kind: str,
    source: str,
    outcomes_of: Metric | None,
    divided_by: Metric | None,
    per_unit: str | None,
) -> None:
    """Raise Invalid for what is said of outcomes and cannot be."""
    if source != SOURCE.OUTCOMES:
        for field, given in [
            ("outcomes_of", outcomes_of),
            ("divided_by", divided_by),
            ("per_unit", per_unit),
        ]:
            if given is not None:
                raise Invalid(f"{field}: {source} is measured by the data plane; leave it out")
        return
    _check_per_unit(kind, per_unit)
    if kind == KIND.RATIO and divided_by is None:
        raise Invalid("divided_by: a ratio of outcomes names the metric that it is divided by")
    if kind != KIND.RATIO and divided_by is not None:
        raise Invalid(f"divided_by: only a ratio is divided; this is a {kind}")
    for field, other in [("outcomes_of", outcomes_of), ("divided_by", divided_by)]:
        if other is not None:
            _check_other(field, other)
    if kind == KIND.PROPORTION and outcomes_of is not None and outcomes_of.kind != KIND.PROPORTION:
        raise Invalid(
            f"outcomes_of: those of {outcomes_of.name} are amounts, of a proportion they are 0 or 1"
        )


def _check_per_unit(kind: str, per_unit: str | None) -> None:
    if per_unit is None:
        return
    if per_unit not in PER_UNIT.values:
        raise Invalid(
            f"per_unit: unknown value {per_unit!r}; expected one of {', '.join(PER_UNIT.values)}"
        )
    if kind == KIND.RATIO and per_unit != PER_UNIT.SUM:
        raise Invalid("per_unit: a ratio always sums a unit's outcomes; leave it out")
    if kind == KIND.PROPORTION and per_unit not in {PER_UNIT.FIRST, PER_UNIT.MAX}:
        raise Invalid(f"per_unit: a proportion takes first or max, not {per_unit}")


def _check_other(field: str, other: Metric) -> None:
    """Raise Invalid when `other` has no outcomes of its own."""
    if other.source != SOURCE.OUTCOMES:
        raise Invalid(f"{field}: {other.name} has no outcomes, the data plane measures it")
    if other.outcomes_of_id is not None:
        raise Invalid(
            f"{field}: {other.name} takes the outcomes of {other.outcomes_of}; "
            "name that one instead"
        )


def _check_source(kind: str, source: str, missing_is_zero: bool, window_s: int | None) -> None:
    """Raise Invalid for what cannot be asked of the data plane's own counts."""
    if source == SOURCE.OUTCOMES:
        return
    if source == SOURCE.LATENCY and kind == KIND.PROPORTION:
        raise Invalid("kind: latency is no proportion; take mean, ratio or quantile")
    if missing_is_zero:
        raise Invalid(
            f"missing_is_zero: a unit without {source} has not been measured yet; leave it out"
        )
    if window_s is not None:
        raise Invalid(f"window_s: {source} is counted as long as the experiment runs; leave it out")


def _check_numbers(
    kind: str, quantile_ppm: int | None, cap: float | None, window_s: int | None
) -> None:
    if kind == KIND.QUANTILE and quantile_ppm is None:
        raise Invalid("quantile_ppm: a quantile says which one; 950000 is the 95 % quantile")
    if kind != KIND.QUANTILE and quantile_ppm is not None:
        raise Invalid(f"quantile_ppm: this is a {kind}; only a quantile has one")
    if quantile_ppm is not None and not 1 <= quantile_ppm < PPM:
        raise Invalid(f"quantile_ppm is {quantile_ppm}; it takes 1 to {PPM - 1} (millionths)")
    if cap is not None and kind in {KIND.PROPORTION, KIND.QUANTILE}:
        raise Invalid(f"cap: large values do not move a {kind}; leave it out")
    if cap is not None and not (math.isfinite(cap) and abs(cap) <= VALUE_MAX):
        raise Invalid(f"cap is {cap}; it takes a number up to {VALUE_MAX:g}")
    if window_s is not None and not 1 <= window_s <= WINDOW_MAX_S:
        raise Invalid(f"window_s is {window_s}; it takes 1 to {WINDOW_MAX_S} seconds (a year)")


def why_not_an_outcome(metric: Metric) -> str | None:
    """Return why no outcome can be sent for `metric`, or None. Select `outcomes_of` with it."""
    if metric.source != SOURCE.OUTCOMES:
        return f"the data plane measures {metric.source} itself; no outcome is taken"
    if metric.outcomes_of_id is not None:
        return f"the metric takes the outcomes of {metric.outcomes_of}; send them under that name"
    return None


@transaction.atomic
def edit_metric(*, metric: Metric, description: str, actor: Actor) -> Metric:
    """Change a metric's description; nothing else of it ever changes."""
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
    """Delete a metric that nothing uses. Raises Conflict, naming what does."""
    # Whoever makes an experiment locks its metrics as well, so that none loses one meanwhile.
    row = Metric.objects.select_for_update(of=("self",)).get(pk=metric.pk)
    if user := _user_of(row):
        raise Conflict(f"metric {row.name} cannot be deleted: {user}")
    told = _told(row)
    try:
        row.delete()
    except ProtectedError:
        raise Conflict(f"metric {row.name} cannot be deleted: it is used") from None
    record_audit(actor=actor, action="metric.deleted", target=row.name, before=told)
    publish_table(reason=f"metric {row.name} deleted", actor=actor, now=database_now())


def _user_of(metric: Metric) -> str:
    """Return in words what uses the metric, or nothing."""
    use = MetricUse.objects.filter(metric=metric).select_related("experiment").first()
    if use is not None:
        return f"experiment {use.experiment.name} uses it"
    other = Metric.objects.filter(Q(outcomes_of=metric) | Q(divided_by=metric)).first()
    if other is not None:
        return f"metric {other.name} is computed from it"
    if OutcomeRow.objects.filter(metric=metric).exists():
        return "outcomes were recorded for it"
    for plan in Plan.objects.prefetch_related("steps"):
        if _asks_for(document_of(plan), metric.name):
            return f"plan {plan.name} checks it"
    for rollout in Rollout.objects.filter(phase__in=LIVE_PHASES).exclude(plan_document={}):
        if _asks_for(from_json(rollout.plan_document), metric.name):
            return f"the rollout of {rollout.target} checks it"
    return ""


def _asks_for(plan: PlanDocument, name: str) -> bool:
    checks = (check for step in plan.steps for check in step.check_documents)
    return any(check.settings.get("metric") == name for check in checks)
