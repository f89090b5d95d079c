"""Apply state transitions of experiments: each writes its row, event, audit entry and notification.

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

# The dimension that is not a header.
TENANT = "tenant"


def check_revision(experiment: Experiment, revision: int | None) -> None:
    """Raise Conflict when `revision`, the one that the caller last read, is outdated."""
    if revision is not None and revision != experiment.revision:
        raise Conflict(
            f"experiment {experiment.name} has changed; reload it and try again",
            revision=experiment.revision,
        )


def check_move(experiment: Experiment, new: ExperimentState, revision: int | None) -> None:
    """Raise Conflict unless the transition is allowed and `revision` is current."""
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
    event: str = "",
    **changes: Any,
) -> None:
    """Make one transition with its row, its audit entry and, if named, a notification `event`."""
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
    if event:
        enqueue_event(experiment, event, actor, now)


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


def enqueue_event(
    experiment: Experiment, event: str, actor: Actor, now: datetime, reason: str | None = None
) -> None:
    """Notify the subscribers of `event`; it is sent only if this transaction commits."""
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


def end_routing(experiment: Experiment, event: str, actor: Actor, now: datetime) -> None:
    """Release the model's split and publish a routing table without it."""
    release_split(owner_id=experiment.pk)
    publish_table(reason=f"experiment {experiment.name} {event}", actor=actor, now=now)


def variants_of(experiment: Experiment) -> list[Variant]:
    return list(experiment.variants.select_related("version__model").order_by("position"))


def deployments_of(variants: Sequence[Variant]) -> dict[int, Deployment]:
    """Return the deployments of the variants' versions, by the version's primary key."""
    rows = Deployment.objects.filter(
        version__in=[variant.version_id for variant in variants], cluster__is_default=True
    )
    return {row.version_id: row for row in rows}


def check_signatures(model: RegisteredModel, versions: Sequence[ModelVersion]) -> None:
    """Raise Invalid unless all `versions` have the stable version's signature."""
    stable = model.stable
    if stable is None:
        raise Invalid(f"{model.name} has no stable version; promote a version first")
    for version in versions:
        if version.signature != stable.signature or version.batched != stable.batched:
            raise Invalid(
                f"the signature of {version} differs from that of the stable version {stable}"
            )


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
    """Return the hold-out salt. A model's experiments share it, so they hold out the same units."""
    return f"holdout:{model.name}"
