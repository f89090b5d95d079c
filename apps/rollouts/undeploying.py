"""Takes versions and models that nothing needs out of the way: undeploy, archive, restore, delete.

Each locks its model's row for the length of a transaction, and asks then what needs it
(`apps.rollouts.version_usage`): whoever starts a rollout or an experiment at the same moment either
comes first and is refused here, or comes second and is refused there. What is loaded leaves in the
usual order (`apps.rollouts.retirement`); files of what is deleted go after that
(`apps.models.deletion`).
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


def hold_model(model: RegisteredModel) -> RegisteredModel:
    """Return the model's row as it is now, locked until the transaction ends."""
    rows = RegisteredModel.objects.select_for_update(of=("self",))
    return rows.select_related("stable").get(pk=model.pk)


def hold_version(version: ModelVersion) -> ModelVersion:
    """Return the version's row as it is now, locked, and its model's before it."""
    model = hold_model(version.model)
    row = ModelVersion.objects.select_for_update(of=("self",)).get(pk=version.pk)
    row.model = model
    return row


def drain(versions: list[ModelVersion], why: str, actor: Actor, now: datetime) -> int:
    """Take what is loaded of `versions` out of the table; return how many leave their servers."""
    leaving = list(
        Deployment.objects.select_for_update(of=("self",))
        .filter(version__in=versions, state__in=LOADED)
        .select_related("version__model", "cluster")
        .order_by("pk")
    )
    for deployment in leaving:
        change_deployment(deployment, DeploymentState.DRAINING, why, actor, now)
    if leaving:
        names = ", ".join(sorted({str(deployment.version) for deployment in leaving}))
        generation = publish_table(reason=f"{names} {why}", actor=actor, now=now)
        Deployment.objects.filter(pk__in=[each.pk for each in leaving]).update(
            retired_generation=generation
        )
    return len(leaving)


def _refuse(what: str, done: str, needs: list[str]) -> None:
    if needs:
        raise Conflict(f"{what} cannot be {done}: {'; '.join(needs)}.", needs=needs)


# --- versions ------------------------------------------------------------------------------------


@transaction.atomic
def undeploy_version(
    *, version: ModelVersion, actor: Actor, now: datetime, reason: str = ""
) -> ModelVersion:
    """Unload a version that nothing needs; where it is not loaded nothing happens.

    Raises:
        Conflict: something needs it; the message says what.
    """
    row = hold_version(version)
    _refuse(str(row), "undeployed", needs_of_version(row, now))
    if drain([row], reason or "undeployed", actor, now):
        record_audit(
            actor=actor, action="version.undeployed", target=str(row), after={"reason": reason}
        )
    return row


@transaction.atomic
def archive_version(
    *, version: ModelVersion, actor: Actor, now: datetime, reason: str = ""
) -> ModelVersion:
    """Unload a version and hide it from lists until it is restored. Repeating it is harmless.

    Raises:
        Conflict: something needs it, or it is deleted.
    """
    row = hold_version(version)
    if row.is_archived:
        return row
    _refuse(str(row), "archived", needs_of_version(row, now))
    return _retire(row, RegistryState.ARCHIVED, "version.archived", reason, actor, now)


@transaction.atomic
def restore_version(*, version: ModelVersion, actor: Actor, now: datetime) -> ModelVersion:
    """Let an archived version be deployed and promoted again. Repeating it is harmless.

    Raises:
        Conflict: it is deleted.
    """
    row = hold_version(version)
    if not row.is_active:
        row.save_state(VERSION_TRANSITIONS, RegistryState.ACTIVE, actor=actor, now=now)
        record_audit(actor=actor, action="version.restored", target=str(row))
    return row


@transaction.atomic
def delete_version(
    *, version: ModelVersion, actor: Actor, now: datetime, reason: str = ""
) -> ModelVersion:
    """Unload a version, then delete its files; what history reads stays. Repeating it is harmless.

    Its number is not given again. Its aliases here go with it.

    Raises:
        Conflict: something needs it; the message says what.
    """
    row = hold_version(version)
    if row.is_deleted:
        return row
    _refuse(str(row), "deleted", needs_of_version(row, now))
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
    _forget_way_back(row)
    drain([row], reason or str(state), actor, now)
    if state == RegistryState.DELETING:
        row.aliases.all().delete()
    row.save_state(VERSION_TRANSITIONS, state, actor=actor, now=now, reason=reason)
    record_audit(
        actor=actor, action=action, target=str(row), before=before, after={"reason": reason}
    )
    return row


def _forget_way_back(row: ModelVersion) -> None:
    """Nobody may be offered to go back to it, now that its time for that is over."""
    RegisteredModel.objects.filter(pk=row.model_id, previous_stable=row).update(
        previous_stable=None, rollback_until=None
    )


# --- models --------------------------------------------------------------------------------------


@transaction.atomic
def undeploy_model(
    *, model: RegisteredModel, actor: Actor, now: datetime, reason: str = ""
) -> RegisteredModel:
    """Take a model that nobody asks for out of service: its stable version is stable no more.

    From then on who asks for it gets 404, until a version is promoted again. Repeating it is
    harmless.

    Raises:
        Conflict: something needs it, requests within the last minutes included.
    """
    row = hold_model(model)
    _refuse(row.name, "undeployed", needs_of_service(row, now))
    before = {"stable": row.stable.number if row.stable else None}
    was_stable = row.stable is not None
    row.stable = row.previous_stable = row.rollback_until = None
    row.save(update_fields=["stable", "previous_stable", "rollback_until"])
    Alias.objects.filter(model=row, name=CHAMPION).delete()
    left = drain(list(row.versions.all()), reason or "model undeployed", actor, now)
    if was_stable or left:
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
    """Unload what is loaded of a model out of service, and hide it. Repeating it is harmless.

    Nothing is imported for it until it is restored.

    Raises:
        Conflict: it is in service, something needs a version of it, or it is deleted.
    """
    row = hold_model(model)
    if row.is_archived:
        return row
    _refuse(row.name, "archived", needs_of_model(row, now))
    drain(list(row.versions.all()), reason or "archived", actor, now)
    row.save_state(MODEL_TRANSITIONS, RegistryState.ARCHIVED, actor=actor, now=now, reason=reason)
    record_audit(actor=actor, action="model.archived", target=row.name, after={"reason": reason})
    return row


@transaction.atomic
def restore_model(*, model: RegisteredModel, actor: Actor, now: datetime) -> RegisteredModel:
    """Show an archived model again, with its versions as they were. Repeating it is harmless.

    Raises:
        Conflict: it is deleted.
    """
    row = hold_model(model)
    if row.is_deleted:
        raise Conflict(f"{row.name} is {row.state}: register a version to make the model anew")
    if not row.is_active:
        row.save_state(MODEL_TRANSITIONS, RegistryState.ACTIVE, actor=actor, now=now)
        record_audit(actor=actor, action="model.restored", target=row.name)
    return row


@transaction.atomic
def delete_model(
    *, model: RegisteredModel, actor: Actor, now: datetime, reason: str = ""
) -> RegisteredModel:
    """Delete a model that is out of service, with all its versions. Repeating it is harmless.

    Roles on it and its aliases go at once, files when its versions have left their servers.

    Raises:
        Conflict: it is in service, or something needs a version of it.
    """
    row = hold_model(model)
    if row.is_deleted:
        return row
    _refuse(row.name, "deleted", needs_of_model(row, now))
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
