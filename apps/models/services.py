"""Public writes of the registry: deployments, and the live split of a model."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

from django.db import IntegrityError, transaction

from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Unavailable
from apps.lib.transitions import compare_and_set
from apps.models.archivable import lock_active
from apps.models.audit import record_audit
from apps.models.models import (
    Deployment,
    DeploymentEvent,
    LiveSplit,
    ModelVersion,
    RegisteredModel,
    ServingCluster,
)
from apps.models.states import DEPLOYMENT_TRANSITIONS, DeploymentState

# In these states a deployment must be loaded again before it can serve.
RELOADABLE = {DeploymentState.ABSENT, DeploymentState.FAILED, DeploymentState.DRAINING}


def default_cluster() -> ServingCluster:
    """Return the default cluster. Raises Unavailable if there is none."""
    cluster = ServingCluster.objects.filter(is_default=True).first()
    if cluster is None:
        raise Unavailable("There is no default serving cluster: create one in the admin.")
    return cluster


@transaction.atomic
def deploy_version(
    *,
    version: ModelVersion,
    actor: Actor,
    now: datetime,
    cluster: ServingCluster | None = None,
) -> Deployment:
    """Deploy `version` to `cluster`, or load it again if it is not loaded. Idempotent.

    The reconciler moves the deployment from `loading` to `ready` or `failed`.

    Raises:
        Conflict: it, or its model, is archived or deleted.
    """
    cluster = cluster or default_cluster()
    lock_active([version])
    deployment, created = Deployment.objects.select_for_update().get_or_create(
        version=version, cluster=cluster, defaults={"changed_at": now}
    )
    if created:
        _append_event(deployment, "", DeploymentState.LOADING, "placed", actor, now)
        record_audit(actor=actor, action="deployment.placed", target=str(deployment))
    elif deployment.state in RELOADABLE:
        change_deployment(deployment, DeploymentState.LOADING, "placed again", actor, now)
    return deployment


@transaction.atomic
def retry_deployment(*, deployment: Deployment, actor: Actor, now: datetime) -> None:
    """Load a failed deployment again. Raises Conflict if it has not failed."""
    if deployment.state != DeploymentState.FAILED:
        raise Conflict(f"{deployment} is {deployment.state}; only a failed one can be retried")
    change_deployment(deployment, DeploymentState.LOADING, "retried", actor, now)
    record_audit(actor=actor, action="deployment.retried", target=str(deployment))


@transaction.atomic
def change_deployment(
    deployment: Deployment,
    new: DeploymentState,
    reason: str,
    actor: Actor,
    now: datetime,
    retired_generation: int | None = None,
) -> None:
    """Make one transition by compare-and-set, with its event in the same transaction.

    Raises:
        Conflict: the transition is not allowed, or another change came first.
    """
    old = DeploymentState(deployment.state)
    DEPLOYMENT_TRANSITIONS.check(str(deployment), old, new)
    compare_and_set(
        deployment,
        state_field="state",
        state=new.value,
        reason=reason,
        changed_at=now,
        leased_until=None,
        retired_generation=retired_generation,
    )
    _append_event(deployment, old, new, reason, actor, now)


def _append_event(
    deployment: Deployment, old: str, new: str, reason: str, actor: Actor, now: datetime
) -> None:
    DeploymentEvent.objects.create(
        deployment=deployment,
        from_state=old,
        to_state=new,
        reason=reason,
        actor=actor.name,
        at=now,
    )


def acquire_split(
    *,
    model: RegisteredModel,
    kind: LiveSplit.Kind,
    owner_id: uuid.UUID,
    versions: Sequence[ModelVersion],
) -> LiveSplit:
    """Acquire the split of `model` for a rollout or an experiment; `versions` stay loaded.

    Raises:
        Conflict: another owner has it; the message names its kind. Or a version is archived or
            deleted.
    """
    lock_active(versions)
    try:
        with transaction.atomic():
            return LiveSplit.objects.create(
                model=model,
                kind=kind,
                owner_id=owner_id,
                version_ids=[version.pk for version in versions],
            )
    except IntegrityError:
        holder = LiveSplit.objects.filter(model=model).first()
        what = {"canary": "rollout"}.get(holder.kind, holder.kind) if holder else "split"
        raise Conflict(
            f"{model.name} already has a live {what}; end it before you start another",
            holder=str(holder.owner_id) if holder else None,
            kind=what,
        ) from None


def route_split(
    *,
    owner_id: uuid.UUID,
    document: dict[str, object],
    shadow: dict[str, object] | None = None,
) -> None:
    """Set the owner's split and shadow for the routing table. Publish in the same transaction."""
    held = LiveSplit.objects.filter(owner_id=owner_id)
    if held.update(document=document, shadow=shadow or {}) != 1:
        raise Conflict("The split was released by another user or task meanwhile.")


def release_split(*, owner_id: uuid.UUID) -> None:
    """Release the split of the owner, if it has one."""
    LiveSplit.objects.filter(owner_id=owner_id).delete()
