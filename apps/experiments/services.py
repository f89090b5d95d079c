"""Public writes of experiments: make, start, advance, stop. Each is one transaction.

While an experiment is live it holds the model's one split; a unit is routed only from `running` on.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from apps.experiments.models import (
    Experiment,
    ExperimentEvent,
    Metric,
    MetricUse,
    Variant,
    WeightChange,
)
from apps.experiments.results import compute_result
from apps.experiments.states import EXPERIMENT_TRANSITIONS, ExperimentState
from apps.lib.actors import INTERLOCK, Actor
from apps.lib.errors import Conflict, Invalid
from apps.lib.transitions import compare_and_set
from apps.models.audit import record_audit
from apps.models.models import Deployment, LiveSplit, ModelVersion, RegisteredModel, valid_name
from apps.models.services import acquire_split, deploy_version, release_split, route_split
from apps.models.states import DeploymentState
from apps.rollouts.publication import publish_table
from contract.bucketing import BUCKETS
from contract.routing import CANARY, EXPLICIT, HOLDOUT, STABLE, ExperimentSplit, VariantRoute

VARIANTS_MIN = 2
VARIANTS_MAX = 20
PLANNED_UNITS_MAX = 1_000_000_000
# Columns that a new row leaves empty.
UNSET_AT_FIRST = {
    "generation",
    "result",
    "refreshed_at",
    "refresh_due_at",
    "started_at",
    "ended_at",
    "rollout",
}
RESERVED_EXPERIMENTS = {"new"}
# Names that telemetry uses for traffic that belongs to no experiment.
RESERVED_NAMES = {STABLE, CANARY, EXPLICIT, HOLDOUT}


@dataclass(frozen=True)
class VariantSpec:
    """A variant as it is asked for: `weight_bp` is its share of the included units."""

    name: str
    version_number: int
    weight_bp: int
    is_control: bool = False


@dataclass(frozen=True)
class MetricChoice:
    """A metric as it is asked for: exactly one is primary, a guardrail has a margin."""

    metric: Metric
    role: str = MetricUse.PRIMARY
    margin: float | None = None
    mann_whitney: bool = False


def create_metric(
    *,
    name: str,
    kind: str,
    direction: str = Metric.Direction.INCREASE,
    description: str = "",
    actor: Actor,
) -> Metric:
    """Define a metric. Raises Invalid for a bad name, Conflict for one that exists."""
    metric = Metric(name=name, kind=kind, direction=direction, description=description)
    with transaction.atomic():
        _insert(metric, f"A metric named {name} exists already.")
        record_audit(
            actor=actor,
            action="metric.created",
            target=name,
            after={"kind": kind, "direction": direction},
        )
    return metric


@transaction.atomic
def create_experiment(
    *,
    name: str,
    model: RegisteredModel,
    metrics: Sequence[MetricChoice],
    variants: Sequence[VariantSpec],
    coverage_bp: int = BUCKETS,
    planned_units: int = 10_000,
    alpha_ppm: int = 50_000,
    hypothesis: str = "",
    actor: Actor,
    now: datetime,
) -> Experiment:
    """Make a draft.

    `coverage_bp` is the share of units included, in basis points; `planned_units` is how many
    units are planned over all variants; `alpha_ppm` is the false-positive rate in millionths.

    Raises:
        Invalid: a setting is out of range, or the variants do not make an experiment.
        Conflict: an experiment of that name exists.
    """
    if name in RESERVED_EXPERIMENTS:
        raise Invalid(f"name: {name} is the address of a page; choose another one")
    _check_settings(coverage_bp, planned_units, alpha_ppm)
    _check_specs(variants)
    versions = _check_versions(model, variants)
    experiment = Experiment(
        name=name,
        hypothesis=hypothesis,
        model=model,
        coverage_bp=coverage_bp,
        inclusion_salt=secrets.token_hex(8),
        variant_salt=secrets.token_hex(8),
        alpha_ppm=alpha_ppm,
        planned_units=planned_units,
        created_by=actor.name,
        created_at=now,
    )
    _insert(experiment, f"An experiment named {name} exists already.")
    Variant.objects.bulk_create(
        Variant(
            experiment=experiment,
            name=spec.name,
            version=versions[spec.version_number],
            weight_bp=spec.weight_bp,
            is_control=spec.is_control,
            position=position,
        )
        for position, spec in enumerate(variants)
    )
    MetricUse.objects.bulk_create(
        MetricUse(
            experiment=experiment,
            metric=choice.metric,
            role=choice.role,
            margin=choice.margin,
            mann_whitney=choice.mann_whitney,
            position=position,
        )
        for position, choice in enumerate(metrics)
    )
    _append_event(experiment, "", "created", actor, now)
    after = {"variants": [msgspec.to_builtins(spec) for spec in variants], "model": model.name}
    record_audit(actor=actor, action="experiment.created", target=name, after=after)
    return experiment


@transaction.atomic
def start_experiment(
    *, experiment: Experiment, actor: Actor, now: datetime, revision: int | None = None
) -> None:
    """Take the model's split and load the variants' versions; routing waits for `advance`.

    Raises:
        Conflict: not a draft, changed meanwhile, or the model has a live rollout or experiment.
        Invalid: the variants no longer fit the model's stable version.
    """
    _check_move(experiment, ExperimentState.PREPARING, revision)
    variants = _variants_of(experiment)
    versions = sorted({variant.version for variant in variants}, key=lambda v: v.number)
    _check_signatures(experiment.model, versions)
    acquire_split(
        model=experiment.model,
        kind=LiveSplit.Kind.EXPERIMENT,
        owner_id=experiment.pk,
        versions=versions,
    )
    for version in versions:
        deploy_version(version=version, actor=actor, now=now)
    reason = "started: its versions are being loaded"
    _move(experiment, ExperimentState.PREPARING, reason, actor, now, started_at=now)


@transaction.atomic
def advance_experiment(*, experiment: Experiment, now: datetime) -> bool:
    """Take a preparing experiment one step on; return whether it changed state.

    It fails with the reason when one of its versions cannot be loaded, and runs when all are ready.
    A version that is no longer placed is placed again. Anybody may call it at any time.
    """
    if experiment.state != ExperimentState.PREPARING:
        return False
    variants = _variants_of(experiment)
    deployments = _deployments_of(variants)
    for version in {variant.version for variant in variants}:
        deployment = deployments.get(version.pk)
        if deployment is not None and deployment.state == DeploymentState.FAILED:
            _fail(experiment, f"{version} cannot be loaded: {deployment.reason}", now)
            return True
        if deployment is None or deployment.state in {
            DeploymentState.ABSENT,
            DeploymentState.DRAINING,
        }:
            deploy_version(version=version, actor=INTERLOCK, now=now)
    if any(
        (found := deployments.get(variant.version_id)) is None
        or found.state != DeploymentState.READY
        for variant in variants
    ):
        return False
    _run(experiment, variants, now)
    return True


@transaction.atomic
def stop_experiment(
    *,
    experiment: Experiment,
    actor: Actor,
    now: datetime,
    reason: str = "",
    revision: int | None = None,
) -> None:
    """End it: freeze the result, give the split back, publish a table without it.

    When the last analysis fails, the last good result stays and says when it was made.
    Raises Conflict when it is neither preparing nor running, or was changed meanwhile.
    """
    _check_move(experiment, ExperimentState.COMPLETED, revision)
    final = compute_result(experiment, now, is_final=True)
    _move(
        experiment,
        ExperimentState.COMPLETED,
        reason or "stopped",
        actor,
        now,
        ended_at=now,
        **final.changes(now),
    )
    _leave_table(experiment, "stopped", actor, now)


def _run(experiment: Experiment, variants: Sequence[Variant], now: datetime) -> None:
    route_split(owner_id=experiment.pk, document=split_document(experiment, variants))
    generation = publish_table(
        reason=f"experiment {experiment.name} runs", actor=INTERLOCK, now=now
    )
    WeightChange.objects.create(
        experiment=experiment,
        at=now,
        weights_bp={variant.name: variant.weight_bp for variant in variants},
        reason="it runs",
        actor=INTERLOCK.name,
    )
    reason = f"all its versions are ready; it is routed from generation {generation} on"
    _move(experiment, ExperimentState.RUNNING, reason, INTERLOCK, now, generation=generation)


def _fail(experiment: Experiment, reason: str, now: datetime) -> None:
    _move(experiment, ExperimentState.FAILED, reason, INTERLOCK, now, ended_at=now)
    _leave_table(experiment, "failed", INTERLOCK, now)


def _leave_table(experiment: Experiment, how: str, actor: Actor, now: datetime) -> None:
    release_split(owner_id=experiment.pk)
    publish_table(reason=f"experiment {experiment.name} {how}", actor=actor, now=now)


def split_document(experiment: Experiment, variants: Sequence[Variant]) -> dict[str, Any]:
    """Return the contract's split of a running experiment, as plain JSON values."""
    split = ExperimentSplit(
        id=str(experiment.pk),
        inclusion_salt=experiment.inclusion_salt,
        variant_salt=experiment.variant_salt,
        coverage_bp=experiment.coverage_bp,
        variants=tuple(
            VariantRoute(
                name=variant.name,
                version=str(variant.version.number),
                weight_bp=variant.weight_bp,
            )
            for variant in variants
        ),
    )
    document: dict[str, Any] = msgspec.to_builtins(split)
    return document


def _check_settings(coverage_bp: int, planned_units: int, alpha_ppm: int) -> None:
    if not 1 <= coverage_bp <= BUCKETS:
        raise Invalid(f"coverage_bp is {coverage_bp}; it takes 1 to {BUCKETS} basis points")
    if not 1 <= planned_units <= PLANNED_UNITS_MAX:
        raise Invalid(f"planned_units is {planned_units}; it takes 1 to {PLANNED_UNITS_MAX}")
    if not 1 <= alpha_ppm <= 500_000:
        raise Invalid(f"alpha_ppm is {alpha_ppm}; it takes 1 to 500000 (0.0001 % to 50 %)")


def _check_specs(specs: Sequence[VariantSpec]) -> None:
    if not VARIANTS_MIN <= len(specs) <= VARIANTS_MAX:
        raise Invalid(
            f"an experiment has {VARIANTS_MIN} to {VARIANTS_MAX} variants, not {len(specs)}"
        )
    for spec in specs:
        _check_variant_name(spec.name)
        if not 0 <= spec.weight_bp <= BUCKETS:
            raise Invalid(f"variant {spec.name}: weight_bp is {spec.weight_bp}, not 0 to {BUCKETS}")
    twice = [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]
    if twice:
        raise Invalid(f"two variants are named {twice[0]}")
    controls = [spec for spec in specs if spec.is_control]
    if len(controls) != 1:
        raise Invalid(f"exactly one variant is the control, not {len(controls)}")
    if controls[0].weight_bp == 0:
        raise Invalid(f"control variant {controls[0].name} needs a weight above 0")
    total_bp = sum(spec.weight_bp for spec in specs)
    if total_bp != BUCKETS:
        raise Invalid(f"weights sum to {total_bp} basis points; they must sum to {BUCKETS}")


def _check_variant_name(name: str) -> None:
    try:
        valid_name(name)
    except ValidationError as error:
        raise Invalid(f"variant {name!r}: {error.messages[0]}") from None
    if name in RESERVED_NAMES:
        raise Invalid(f"variant {name}: this name is reserved for traffic outside experiments")


def _check_versions(
    model: RegisteredModel, specs: Sequence[VariantSpec]
) -> dict[int, ModelVersion]:
    numbers = {spec.version_number for spec in specs}
    versions = {v.number: v for v in model.versions.filter(number__in=numbers)}
    for spec in specs:
        if spec.version_number not in versions:
            raise Invalid(f"variant {spec.name}: {model.name} has no version {spec.version_number}")
    _check_signatures(model, list(versions.values()))
    return versions


def _check_signatures(model: RegisteredModel, versions: Sequence[ModelVersion]) -> None:
    stable = model.stable
    if stable is None:
        raise Invalid(
            f"{model.name} has no stable version; promote one before you compare versions"
        )
    for version in versions:
        if version.signature != stable.signature or version.batched != stable.batched:
            raise Invalid(f"{version} has another signature than the stable version {stable}")


def _check_move(experiment: Experiment, new: ExperimentState, revision: int | None) -> None:
    old = ExperimentState(experiment.state)
    EXPERIMENT_TRANSITIONS.check(f"experiment {experiment.name}", old, new)
    if revision is not None and revision != experiment.revision:
        raise Conflict(
            f"experiment {experiment.name} was changed meanwhile; look again",
            revision=experiment.revision,
        )


def _move(
    experiment: Experiment,
    new: ExperimentState,
    reason: str,
    actor: Actor,
    now: datetime,
    **changes: Any,
) -> None:
    """Make one transition with its row and its audit entry."""
    old = ExperimentState(experiment.state)
    EXPERIMENT_TRANSITIONS.check(f"experiment {experiment.name}", old, new)
    compare_and_set(experiment, state_field="state", state=new.value, reason=reason, **changes)
    _append_event(experiment, old.value, reason, actor, now)
    record_audit(
        actor=actor,
        action=f"experiment.{new.value}",
        target=experiment.name,
        before={"state": old.value},
        after={"state": new.value, "reason": reason},
    )


def _append_event(
    experiment: Experiment, old: str, reason: str, actor: Actor, now: datetime
) -> None:
    ExperimentEvent.objects.create(
        experiment=experiment,
        from_state=old,
        to_state=experiment.state,
        reason=reason,
        actor=actor.name,
        at=now,
    )


def _variants_of(experiment: Experiment) -> list[Variant]:
    return list(experiment.variants.select_related("version__model").order_by("position"))


def _deployments_of(variants: Sequence[Variant]) -> dict[int, Deployment]:
    rows = Deployment.objects.filter(
        version__in=[variant.version_id for variant in variants], cluster__is_default=True
    )
    return {row.version_id: row for row in rows}


def _insert(row: Metric | Experiment, taken: str) -> None:
    """Insert a named row. Raises Invalid for a bad field, Conflict when the name is taken."""
    try:
        row.clean_fields(exclude=UNSET_AT_FIRST)
    except ValidationError as error:
        field, messages = next(iter(error.message_dict.items()))
        raise Invalid(f"{field}: {messages[0]}") from None
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError:
        raise Conflict(taken) from None
