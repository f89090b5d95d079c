"""What every move of an experiment does: one legal transition, its row, audit entry and message.

Every function here runs inside the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from apps.experiments.models import Experiment, ExperimentEvent, Metric, Variant
from apps.experiments.states import EXPERIMENT_TRANSITIONS, ExperimentState
from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.lib.transitions import compare_and_set
from apps.models.audit import record_audit
from apps.models.models import Deployment, ModelVersion, RegisteredModel
from apps.models.services import release_split
from apps.notifications.outbox import enqueue
from apps.rollouts.publication import publish_table
from contract.routing import ExperimentSplit, VariantRoute

# A dimension that is no header.
TENANT = "tenant"


def check_revision(experiment: Experiment, revision: int | None) -> None:
    """Raise Conflict when `revision`, what the caller last saw, is not what is there."""
    if revision is not None and revision != experiment.revision:
        raise Conflict(
            f"experiment {experiment.name} was changed meanwhile; look again",
            revision=experiment.revision,
        )


def check_move(experiment: Experiment, new: ExperimentState, revision: int | None) -> None:
    """Raise Conflict unless `new` may follow and nobody was faster."""
    old = ExperimentState(experiment.state)
    EXPERIMENT_TRANSITIONS.check(f"experiment {experiment.name}", old, new)
    check_revision(experiment, revision)


def move(
    experiment: Experiment,
    new: ExperimentState,
    reason: str,
    actor: Actor,
    now: datetime,
    *,
    told: str = "",
    **changes: Any,
) -> None:
    """Make one transition with its row, its audit entry and, as `told`, its message."""
    old = ExperimentState(experiment.state)
    EXPERIMENT_TRANSITIONS.check(f"experiment {experiment.name}", old, new)
    compare_and_set(experiment, state_field="state", state=new.value, reason=reason, **changes)
    append_event(experiment, old.value, reason, actor, now)
    record_audit(
        actor=actor,
        action=f"experiment.{new.value}",
        target=experiment.name,
        before={"state": old.value},
        after={"state": new.value, "reason": reason},
    )
    if told:
        tell(experiment, told, actor, now)


def append_event(
    experiment: Experiment,
    old: str,
    reason: str,
    actor: Actor,
    now: datetime,
    evidence: dict[str, Any] | None = None,
) -> None:
    ExperimentEvent.objects.create(
        experiment=experiment,
        from_state=old,
        to_state=experiment.state,
        reason=reason,
        actor=actor.name,
        evidence=evidence or {},
        at=now,
    )


def tell(
    experiment: Experiment, event: str, actor: Actor, now: datetime, reason: str | None = None
) -> None:
    """Let who asked for it hear of `event`; it is told only if this transaction commits."""
    enqueue(
        event=event,
        model=experiment.model,
        payload={
            "experiment": experiment.name,
            "state": str(experiment.state),
            "conclusion": str(experiment.conclusion),
            "reason": experiment.reason if reason is None else reason,
            "actor": actor.name,
        },
        now=now,
    )


def leave_table(experiment: Experiment, how: str, actor: Actor, now: datetime) -> None:
    """Give the model's split back and publish a table without it."""
    release_split(owner_id=experiment.pk)
    publish_table(reason=f"experiment {experiment.name} {how}", actor=actor, now=now)


def variants_of(experiment: Experiment) -> list[Variant]:
    return list(experiment.variants.select_related("version__model").order_by("position"))


def deployments_of(variants: Sequence[Variant]) -> dict[int, Deployment]:
    """Return where the variants' versions are placed, by the version's primary key."""
    rows = Deployment.objects.filter(
        version__in=[variant.version_id for variant in variants], cluster__is_default=True
    )
    return {row.version_id: row for row in rows}


def check_signatures(model: RegisteredModel, versions: Sequence[ModelVersion]) -> None:
    """Raise Invalid unless all `versions` can answer the requests that stable gets."""
    stable = model.stable
    if stable is None:
        raise Invalid(
            f"{model.name} has no stable version; promote one before you compare versions"
        )
    for version in versions:
        if version.signature != stable.signature or version.batched != stable.batched:
            raise Invalid(f"{version} has another signature than the stable version {stable}")


def split_document(experiment: Experiment, variants: Sequence[Variant]) -> dict[str, Any]:
    """Return the contract's split of a running experiment, as plain JSON values."""
    uses = experiment.metric_uses.select_related("metric")
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
        tenants=tuple(experiment.tenants),
        headers={name: tuple(values) for name, values in experiment.headers.items()},
        holdout_salt=holdout_salt(experiment.model),
        holdout_bp=experiment.holdout_bp,
        dimensions=tuple(name for name in experiment.dimensions if name != TENANT),
        measured=any(use.metric.source != Metric.Source.OUTCOMES for use in uses),
    )
    document: dict[str, Any] = msgspec.to_builtins(split)
    return document


def holdout_salt(model: RegisteredModel) -> str:
    """Return the salt that all experiments of a model share: who is held out of one is of all."""
    return f"holdout:{model.name}"
