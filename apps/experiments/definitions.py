"""Create, edit and delete drafts of experiments. After the start only weights change."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypedDict, Unpack

import msgspec
from django.db import transaction

from apps.experiments.draft_checks import (
    MetricChoice,
    VariantSpec,
    check_choices,
    check_settings,
    check_specs,
    margin_of,
    read_headers,
)
from apps.experiments.lifecycle import append_event, check_revision, check_signatures
from apps.experiments.models import Experiment, Metric, MetricUse, Variant
from apps.experiments.states import ExperimentState
from apps.experiments.unique_names import insert_named
from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.lib.transitions import compare_and_set
from apps.models.archivable import require_active
from apps.models.audit import record_audit
from apps.models.models import ModelVersion, RegisteredModel, Tenant

RESERVED_EXPERIMENTS = {"new", "metrics", "of-version", "snapshots", "import", "imports"}


class Settings(TypedDict, total=False):
    """Settings of a draft besides its metrics and variants.

    `coverage_bp`: share of units included, in basis points; `planned_units`: planned number of
    units, all variants together; `alpha_ppm`: the false-positive rate in millionths; `tenants`,
    `headers` ({name: [values]}): targeting; `holdout_bp`: share of units that get stable in every
    experiment of the model; `dimensions`: `tenant` or headers to break results down by;
    `stratify_by`: one of the dimensions; `covariate_s`: seconds before the exposure whose values
    are CUPED's covariate.
    """

    hypothesis: str
    coverage_bp: int
    planned_units: int
    alpha_ppm: int
    tenants: Sequence[str]
    headers: dict[str, Sequence[str]]
    holdout_bp: int
    dimensions: Sequence[str]
    stratify_by: str
    covariate_s: int


SETTINGS = tuple(Settings.__annotations__)


@transaction.atomic
def create_experiment(
    *,
    name: str,
    model: RegisteredModel,
    metrics: Sequence[MetricChoice],
    variants: Sequence[VariantSpec],
    actor: Actor,
    now: datetime,
    **settings: Unpack[Settings],
) -> Experiment:
    """Create a draft; see `Settings` for its settings.

    Raises:
        Invalid: a setting is out of range, or the metrics or variants are not valid.
        Conflict: the name is taken.
    """
    if name in RESERVED_EXPERIMENTS:
        raise Invalid(
            f"{name!r} is reserved: a page has it in its URL; choose another name", field="name"
        )
    experiment = Experiment(
        name=name,
        model=model,
        inclusion_salt=secrets.token_hex(8),
        variant_salt=secrets.token_hex(8),
        created_by=actor.name,
        created_at=now,
    )
    _apply(experiment, settings)
    check_specs(variants)
    check_choices(metrics)
    insert_named(experiment, f"An experiment named {name} already exists.")
    _write_variants(experiment, variants)
    _write_metrics(experiment, metrics)
    append_event(experiment, "", "created", actor, now)
    record_audit(
        actor=actor, action="experiment.created", target=name, after=describe_draft(experiment)
    )
    return experiment


@transaction.atomic
def edit_experiment(
    *,
    experiment: Experiment,
    actor: Actor,
    now: datetime,
    revision: int | None = None,
    metrics: Sequence[MetricChoice] | None = None,
    variants: Sequence[VariantSpec] | None = None,
    **settings: Unpack[Settings],
) -> Experiment:
    """Change the supplied fields of a draft; metrics and variants are replaced as a whole.

    Name and model cannot change.

    Raises:
        Conflict: it is not a draft, or `revision` is outdated.
        Invalid: as `create_experiment`; nothing was changed.
    """
    _require_draft(experiment, "edited", revision)
    row = Experiment.objects.select_related("model__stable").get(pk=experiment.pk)
    check_revision(row, revision)
    before = describe_draft(row)
    _apply(row, settings)
    changes = {name: getattr(row, name) for name in settings}
    # This locks the row; a concurrent start or edit makes it a Conflict.
    compare_and_set(row, state_field="state", **changes)
    if variants is not None:
        check_specs(variants)
        row.variants.all().delete()
        _write_variants(row, variants)
    if metrics is not None:
        check_choices(metrics)
        row.metric_uses.all().delete()
        _write_metrics(row, metrics)
    append_event(row, row.state, "edited", actor, now)
    after = describe_draft(row)
    changed = [name for name in after if after[name] != before[name]]
    record_audit(
        actor=actor,
        action="experiment.edited",
        target=row.name,
        before={name: before[name] for name in changed},
        after={name: after[name] for name in changed},
    )
    return row


@transaction.atomic
def delete_experiment(
    *, experiment: Experiment, actor: Actor, now: datetime, revision: int | None = None
) -> None:
    """Delete a draft. Raises Conflict when it is not a draft, or `revision` is outdated."""
    row = Experiment.objects.select_for_update(of=("self",)).filter(pk=experiment.pk).first()
    if row is None:
        return
    _require_draft(row, "deleted", revision)
    before = describe_draft(row)
    row.delete()
    record_audit(actor=actor, action="experiment.deleted", target=row.name, before=before)


def _require_draft(experiment: Experiment, action: str, revision: int | None) -> None:
    if experiment.state != ExperimentState.DRAFT:
        raise Conflict(
            f"experiment {experiment.name} is {experiment.state}; only a draft can be {action}",
            state=experiment.state,
        )
    check_revision(experiment, revision)


def describe_draft(experiment: Experiment) -> dict[str, Any]:
    """Return a draft's fields for the audit log."""
    uses = experiment.metric_uses.select_related("metric").order_by("position")
    variants = experiment.variants.select_related("version").order_by("position")
    return {
        "model": experiment.model.name,
        "variants": [
            msgspec.to_builtins(VariantSpec(v.name, v.version.number, v.weight_bp, v.is_control))
            for v in variants
        ],
        "metrics": [{"metric": u.metric.name, "role": u.role, "margin": u.margin} for u in uses],
        **{name: getattr(experiment, name) for name in SETTINGS},
    }


def _apply(experiment: Experiment, settings: Settings) -> None:
    """Apply the supplied settings, then check all settings. Raises Invalid."""
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise Invalid(f"{unknown[0]}: unknown setting")
    for name, value in settings.items():
        setattr(experiment, name, value)
    experiment.tenants = list(dict.fromkeys(experiment.tenants))
    experiment.headers = read_headers(experiment.headers)
    experiment.dimensions = [str(name).lower() for name in experiment.dimensions]
    experiment.stratify_by = experiment.stratify_by.lower()
    check_settings(experiment)
    known = set(Tenant.objects.filter(name__in=experiment.tenants).values_list("name", flat=True))
    for tenant in experiment.tenants:
        if tenant not in known:
            raise Invalid(
                f"there is no tenant {tenant!r}; create it first, or omit it", field="tenants"
            )


def _write_variants(experiment: Experiment, specs: Sequence[VariantSpec]) -> None:
    versions = _versions(experiment.model, specs)
    Variant.objects.bulk_create(
        Variant(
            experiment=experiment,
            name=spec.name,
            version=versions[spec.version_number or 0],
            weight_bp=spec.weight_bp,
            is_control=spec.is_control,
            position=position,
        )
        for position, spec in enumerate(specs)
    )


def _versions(model: RegisteredModel, specs: Sequence[VariantSpec]) -> dict[int, ModelVersion]:
    numbers = {spec.version_number for spec in specs if spec.version_number is not None}
    versions = {v.number: v for v in model.versions.filter(number__in=numbers)}
    require_active(versions.values())
    for spec in specs:
        if spec.version_number not in versions:
            raise Invalid(
                f"{model.name} has no version {spec.version_number}", field=f"variant {spec.name}"
            )
    check_signatures(model, list(versions.values()))
    return versions


def _write_metrics(experiment: Experiment, choices: Sequence[MetricChoice]) -> None:
    # The primary metric comes first; the others keep their order.
    ordered = sorted(choices, key=lambda choice: choice.role != MetricUse.PRIMARY)
    # Deleting a metric locks its row too, before it checks the uses.
    keys = [choice.metric.pk for choice in ordered]
    locked = Metric.objects.select_for_update(of=("self",), no_key=True).filter(pk__in=keys)
    existing = {metric.pk for metric in locked.order_by("pk")}
    for choice in ordered:
        if choice.metric.pk not in existing:
            raise Conflict(f"metric {choice.metric.name} has been deleted")
    MetricUse.objects.bulk_create(
        MetricUse(
            experiment=experiment,
            metric=choice.metric,
            role=choice.role,
            margin=margin_of(choice),
            mann_whitney=choice.mann_whitney,
            position=position,
        )
        for position, choice in enumerate(ordered)
    )
