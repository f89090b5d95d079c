"""Undeploys, archives, restores and deletes versions and models that are not in use.

Each write locks the row of the model and then checks the usage (`apps.rollouts.version_usage`). A
rollout or experiment that starts at the same time either comes first, and this write is refused, or
comes second and is refused itself. `apps.rollouts.retirement` unloads the versions in the safe
order; then `apps.models.deletion` deletes the files.
"""

from __future__ import annotations

from datetime import datetime

from django.db import transaction

from apps.lib.actors import Actor
from apps.lib.errors import Conflict
from apps.models.audit import record_audit
from apps.models.models import (
    CHAMPION,
    Alias,
    Deployment,
    ModelRole,
    ModelVersion,
    RegisteredModel,
)
from apps.models.services import change_deployment
from apps.models.states import (
    MODEL_TRANSITIONS,
    VERSION_TRANSITIONS,
    DeploymentState,
    RegistryState,
)
from apps.rollouts.publication import publish_table
from apps.rollouts.version_usage import needs_of_model, needs_of_service, needs_of_version

LOADED = (DeploymentState.READY, DeploymentState.FAILED)
REASON_MAX = 1_000


def lock_model(model: RegisteredModel) -> RegisteredModel:
    """Return the current row of the model, locked until the transaction ends."""
    rows = RegisteredModel.objects.select_for_update(of=("self",))
    return rows.select_related("stable").get(pk=model.pk)


def lock_version(version: ModelVersion) -> ModelVersion:
    """Return the current row of the version, locked after the row of its model."""
    model = lock_model(version.model)
    row = ModelVersion.objects.select_for_update(of=("self",)).get(pk=version.pk)
    row.model = model
    return row


def drain(versions: list[ModelVersion], reason: str, actor: Actor, now: datetime) -> int:
    """Remove loaded `versions` from the table; return the number of draining deployments."""
    draining = list(
        Deployment.objects.select_for_update(of=("self",))
        .filter(version__in=versions, state__in=LOADED)
        .select_related("version__model", "cluster")
        .order_by("pk")
    )
    for deployment in draining:
        change_deployment(deployment, DeploymentState.DRAINING, reason, actor, now)
    if draining:
        names = ", ".join(sorted({str(deployment.version) for deployment in draining}))
        generation = publish_table(reason=f"{names} {reason}", actor=actor, now=now)
        Deployment.objects.filter(pk__in=[each.pk for each in draining]).update(
            retired_generation=generation
        )
    return len(draining)


def _require_unused(subject: str, done: str, needs: list[str]) -> None:
    if needs:
        raise Conflict(f"{subject} cannot be {done}: {'; '.join(needs)}.", needs=needs)


# --- versions ------------------------------------------------------------------------------------


@transaction.atomic
def undeploy_version(
    *, version: ModelVersion, actor: Actor, now: datetime, reason: str = ""
) -> ModelVersion:
    """Unload a version that is not in use. Does nothing if it is not loaded.

    Raises:
        Conflict: it is in use; the message says by what.
    """
    row = lock_version(version)
    _require_unused(str(row), "undeployed", needs_of_version(row, now))
    if drain([row], reason or "undeployed", actor, now):
        record_audit(
            actor=actor, action="version.undeployed", target=str(row), after={"reason": reason}
        )
    return row


@transaction.atomic
def archive_version(
    *, version: ModelVersion, actor: Actor, now: datetime, reason: str = ""
) -> ModelVersion:
    """Unload a version and hide it from lists until it is restored. Idempotent.

    Raises:
        Conflict: it is in use or deleted.
    """
    row = lock_version(version)
    if row.is_archived:
        return row
    _require_unused(str(row), "archived", needs_of_version(row, now))
    return _retire(row, RegistryState.ARCHIVED, "version.archived", reason, actor, now)


@transaction.atomic
def restore_version(*, version: ModelVersion, actor: Actor, now: datetime) -> ModelVersion:
    """Restore an archived version, so that it can be deployed again. Idempotent.

    Raises:
        Conflict: it is deleted.
    """
    row = lock_version(version)
    if not row.is_active:
        row.save_state(VERSION_TRANSITIONS, RegistryState.ACTIVE, actor=actor, now=now)
        record_audit(actor=actor, action="version.restored", target=str(row))
    return row


@transaction.atomic
def delete_version(
    *, version: ModelVersion, actor: Actor, now: datetime, reason: str = ""
) -> ModelVersion:
    """Unload a version, then delete its files; its history stays. Idempotent.

    Its number is not reused. Its aliases in Interlock are deleted.

    Raises:
        Conflict: it is in use; the message says by what.
    """
    row = lock_version(version)
    if row.is_deleted:
        return row
    _require_unused(str(row), "deleted", needs_of_version(row, now))
    return _retire(row, RegistryState.DELETING, "version.deletion_began", reason, actor, now)


def _retire(
    row: ModelVersion,
    state: RegistryState,
    action: str,
    reason: str,
    actor: Actor,
    now: datetime,
) -> ModelVersion:
    before = {"state": row.state, "aliases": sorted(row.aliases.values_list("name", flat=True))}
    _clear_rollback_target(row)
    drain([row], reason or str(state), actor, now)
    if state == RegistryState.DELETING:
        row.aliases.all().delete()
    row.save_state(VERSION_TRANSITIONS, state, actor=actor, now=now, reason=reason)
    record_audit(
        actor=actor, action=action, target=str(row), before=before, after={"reason": reason}
    )
    return row


def _clear_rollback_target(row: ModelVersion) -> None:
    """Remove the version as rollback target of its model."""
    RegisteredModel.objects.filter(pk=row.model_id, previous_stable=row).update(
        previous_stable=None, rollback_until=None
    )


# --- models --------------------------------------------------------------------------------------


@transaction.atomic
def undeploy_model(
    *, model: RegisteredModel, actor: Actor, now: datetime, reason: str = ""
) -> RegisteredModel:
    """Take a model without traffic out of service: it has no stable version any more.

    Requests for it get 404 until a version is promoted again. Idempotent.

    Raises:
        Conflict: it is in use, which includes requests in the last 10 minutes.
    """
    row = lock_model(model)
    _require_unused(row.name, "undeployed", needs_of_service(row, now))
    before = {"stable": row.stable.number if row.stable else None}
    was_stable = row.stable is not None
    row.stable = row.previous_stable = row.rollback_until = None
    row.save(update_fields=["stable", "previous_stable", "rollback_until"])
    Alias.objects.filter(model=row, name=CHAMPION).delete()
    drained = drain(list(row.versions.all()), reason or "model undeployed", actor, now)
    if was_stable or drained:
        record_audit(
            actor=actor,
            action="model.undeployed",
            target=row.name,
            before=before,
            after={"reason": reason},
        )
    return row


@transaction.atomic
def archive_model(
    *, model: RegisteredModel, actor: Actor, now: datetime, reason: str = ""
) -> RegisteredModel:
    """Unload all versions of a model that is out of service, and hide it. Idempotent.

    Imports for it stop until it is restored.

    Raises:
        Conflict: it is in service, one of its versions is in use, or it is deleted.
    """
    row = lock_model(model)
    if row.is_archived:
        return row
    _require_unused(row.name, "archived", needs_of_model(row, now))
    drain(list(row.versions.all()), reason or "archived", actor, now)
    row.save_state(MODEL_TRANSITIONS, RegistryState.ARCHIVED, actor=actor, now=now, reason=reason)
    record_audit(actor=actor, action="model.archived", target=row.name, after={"reason": reason})
    return row


@transaction.atomic
def restore_model(*, model: RegisteredModel, actor: Actor, now: datetime) -> RegisteredModel:
    """Restore an archived model with its versions as they were. Idempotent.

    Raises:
        Conflict: it is deleted.
    """
    row = lock_model(model)
    if row.is_deleted:
        raise Conflict(f"{row.name} is {row.state}; register a version to create the model again")
    if not row.is_active:
        row.save_state(MODEL_TRANSITIONS, RegistryState.ACTIVE, actor=actor, now=now)
        record_audit(actor=actor, action="model.restored", target=row.name)
    return row


@transaction.atomic
def delete_model(
    *, model: RegisteredModel, actor: Actor, now: datetime, reason: str = ""
) -> RegisteredModel:
    """Delete a model that is out of service, with all its versions. Idempotent.

    Its roles and aliases are deleted at once, files after its versions are unloaded.

    Raises:
        Conflict: it is in service, or one of its versions is in use.
    """
    row = lock_model(model)
    if row.is_deleted:
        return row
    _require_unused(row.name, "deleted", needs_of_model(row, now))
    drain(list(row.versions.all()), reason or "deleted", actor, now)
    numbers = []
    for version in row.versions.select_for_update(of=("self",)).kept().order_by("number"):
        version.model = row
        _retire(version, RegistryState.DELETING, "version.deletion_began", reason, actor, now)
        numbers.append(version.number)
    row.refresh_from_db()
    row.aliases.all().delete()
    ModelRole.objects.filter(model=row).delete()
    row.save_state(
        MODEL_TRANSITIONS,
        RegistryState.DELETING,
        actor=actor,
        now=now,
        reason=reason,
        candidate_plan="",
    )
    record_audit(
        actor=actor,
        action="model.deletion_began",
        target=row.name,
        before={"versions": numbers},
        after={"reason": reason},
    )
    return row
