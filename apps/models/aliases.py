"""Synchronises aliases with MLflow in both directions: a level-triggered comparison.

Interlock owns `champion`: it names the stable version, and MLflow's `champion` is reset to it. All
other aliases are shared, and the last move wins: an alias set here is `is_pending` until MLflow has
it, and MLflow's aliases that were listed before that move do not overwrite it. An outage of MLflow
only delays the synchronisation.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from apps.lib.actors import INTERLOCK, Actor
from apps.lib.errors import InterlockError, Invalid, NotFound
from apps.models.archivable import require_active
from apps.models.audit import record_audit
from apps.models.mlflow import MlflowClient, NotReached, RegistryModel, connect
from apps.models.models import CHAMPION, Alias, ModelVersion, RegisteredModel
from apps.models.registry_events import hint_sync

log = logging.getLogger(__name__)

MLFLOW = Actor("mlflow", "registry")
# MLflow's own rules; a number would be read as the number of a version.
ALIAS_PATTERN = re.compile(r"(?![vV]?\d+$)[A-Za-z0-9_-]{1,100}")
ALIAS_RULE = (
    "An alias has at most 100 letters, digits, dashes and underscores; a number, "
    '"v" with a number, and "latest" are not allowed.'
)


def check_alias(name: str) -> None:
    """Raise Invalid for `champion` and for names that MLflow would refuse."""
    if name == CHAMPION:
        raise Invalid(
            f"{CHAMPION} names the stable version: promote a version, or roll back, to move it."
        )
    if not ALIAS_PATTERN.fullmatch(name) or name.lower() == "latest":
        raise Invalid(f"{name!r} is not a valid alias. {ALIAS_RULE}")


@transaction.atomic
def move_alias(*, name: str, version: ModelVersion, actor: Actor) -> Alias:
    """Set an alias of the model to `version`: here at once, in MLflow by the next sync.

    Raises:
        Invalid: the name is not valid, or it is `champion`.
        Conflict: the version is archived or deleted.
    """
    check_alias(name)
    model = RegisteredModel.objects.select_for_update(of=("self",)).get(pk=version.model_id)
    require_active([version])
    current = model.aliases.select_related("version").filter(name=name).first()
    if current is not None and current.version_id == version.pk:
        return current
    defaults = {"version": version, "is_pending": bool(settings.MLFLOW_TRACKING_URI)}
    alias, _ = Alias.objects.update_or_create(model=model, name=name, defaults=defaults)
    record_audit(
        actor=actor,
        action="alias.moved",
        target=f"{model.name}@{name}",
        before={"version": current.version.number} if current else {},
        after={"version": version.number},
    )
    transaction.on_commit(hint_sync)
    return alias


def delete_alias(*, model: RegisteredModel, name: str, actor: Actor) -> None:
    """Delete an alias, first in MLflow: a deleted row here could not mark it as pending.

    Raises:
        Invalid: it is `champion`.
        NotFound: the model has no such alias.
        Unavailable: MLflow does not respond; nothing was changed.
    """
    check_alias(name)
    current = model.aliases.select_related("version").filter(name=name).first()
    if current is None:
        raise NotFound(f"{model.name} has no alias {name!r}.")
    if settings.MLFLOW_TRACKING_URI:
        with connect() as client, suppress(NotFound):
            client.delete_alias(model.name, name)
    with transaction.atomic():
        Alias.objects.filter(pk=current.pk).delete()
        record_audit(
            actor=actor,
            action="alias.deleted",
            target=f"{model.name}@{name}",
            before={"version": current.version.number},
        )


def copy_aliases(models: Mapping[str, RegistryModel], listed_at: datetime) -> int:
    """Copy the aliases that MLflow had at `listed_at`; return the number of moved or deleted ones.

    Unchanged are `champion`, pending aliases, aliases set here since `listed_at`, and aliases of
    versions that are not MLflow's, unless MLflow has the same alias. A model whose aliases cannot
    be copied keeps them, shows the problem on its page, and does not block other models.
    """
    moved = 0
    for owner in RegisteredModel.objects.filter(name__in=list(models)):
        problem = ""
        try:
            with transaction.atomic():
                moved += _copy_model_aliases(owner, models[owner.name].aliases, listed_at)
        except Exception as error:
            log.exception("registry.aliases_failed %s", owner.name)
            problem = f"Aliases cannot be copied from MLflow: {type(error).__name__}: {error}"
        if problem != owner.registry_problem:
            RegisteredModel.objects.filter(pk=owner.pk).update(registry_problem=problem)
    return moved


def _copy_model_aliases(
    owner: RegisteredModel, theirs: Mapping[str, int], listed_at: datetime
) -> int:
    expected = {name: number for name, number in theirs.items() if name != CHAMPION}
    # MLflow may still have versions that were deleted here, with aliases.
    known = owner.versions.kept().exclude(registry_number=None)
    versions = {v.registry_number: v for v in known}
    ours = {a.name: a for a in owner.aliases.exclude(name=CHAMPION).select_related("version")}
    moved = 0
    for name in {*expected, *ours}:
        alias = ours.get(name)
        if alias is not None and (alias.is_pending or alias.changed_at >= listed_at):
            continue
        version = versions.get(expected.get(name, -1))
        moved += _copy(owner, name, alias, name in expected, version)
    return moved


def _copy(
    owner: RegisteredModel,
    name: str,
    alias: Alias | None,
    is_in_mlflow: bool,
    version: ModelVersion | None,
) -> int:
    """Set one alias to `version`; delete it if MLflow's names a version that is not here."""
    before = alias.version if alias else None
    if before == version or (before and not is_in_mlflow and before.registry_number is None):
        return 0
    if version is None:
        Alias.objects.filter(model=owner, name=name).delete()
    else:
        Alias.objects.update_or_create(model=owner, name=name, defaults={"version": version})
    record_audit(
        actor=MLFLOW,
        action="alias.moved" if version else "alias.deleted",
        target=f"{owner.name}@{name}",
        before={"version": before.number} if before else {},
        after={"version": version.number} if version else {},
    )
    return 1


def push_aliases(client: MlflowClient, models: Mapping[str, RegistryModel]) -> tuple[str, ...]:
    """Write `champion` and pending aliases to MLflow; return `model@alias` of those written.

    Only for models that MLflow has, and `champion` only if it names a version of MLflow. An alias
    that MLflow refuses for now is written by a later run. Raises NotReached: MLflow is down, and a
    later run writes the rest.
    """
    ours = Alias.objects.filter(Q(name=CHAMPION) | Q(is_pending=True), model__name__in=models)
    written = []
    for alias in ours.select_related("model", "version").order_by("model__name", "name"):
        current = models[alias.model.name].aliases.get(alias.name)
        push = _push_champion if alias.name == CHAMPION else _push_pending
        try:
            if push(client, alias, current):
                written.append(f"{alias.model.name}@{alias.name}")
        except NotReached:
            raise
        except (Invalid, NotFound) as error:
            _give_up(alias, error.message)
        except InterlockError as error:
            log.warning("alias.not_written %s@%s: %s", alias.model.name, alias.name, error.message)
    return tuple(written)


def _push_champion(client: MlflowClient, alias: Alias, current: int | None) -> bool:
    expected = alias.version.registry_number
    if expected is None:
        return False
    was_moved = alias.written_number not in (None, current)
    if current != expected:
        client.set_alias(alias.model.name, CHAMPION, expected)
        _record_push("alias.restored" if was_moved else "alias.pushed", alias, current)
    if alias.written_number != expected:
        # A query, not `save`: `changed_at` stays the time of the last move here.
        Alias.objects.filter(pk=alias.pk).update(written_number=expected)
    return current != expected


def _push_pending(client: MlflowClient, alias: Alias, current: int | None) -> bool:
    expected = alias.version.registry_number
    if expected is None and current is not None:
        client.delete_alias(alias.model.name, alias.name)
    elif expected is not None and current != expected:
        client.set_alias(alias.model.name, alias.name, expected)
    _settle(alias)
    if current != expected:
        _record_push("alias.pushed", alias, current)
    return current != expected


def _give_up(alias: Alias, reason: str) -> None:
    """Stop pushing an alias that MLflow refuses for good; `champion` is always retried."""
    log.warning("alias.refused %s@%s: %s", alias.model.name, alias.name, reason)
    if alias.is_pending and _settle(alias):
        record_audit(
            actor=INTERLOCK,
            action="alias.refused",
            target=f"{alias.model.name}@{alias.name}",
            after={"reason": reason},
        )


def _settle(alias: Alias) -> bool:
    """Clear `is_pending`, unless the alias moved here meanwhile; MLflow may move it from now on."""
    rows = Alias.objects.filter(pk=alias.pk, version=alias.version, is_pending=True)
    return rows.update(is_pending=False, changed_at=timezone.now()) == 1


def _record_push(action: str, alias: Alias, previous: int | None) -> None:
    target = f"{alias.model.name}@{alias.name}"
    expected = alias.version.registry_number
    # A `champion` that was moved in MLflow is logged as a warning.
    level = logging.WARNING if action == "alias.restored" else logging.INFO
    log.log(level, "%s %s in MLflow from %s to %s", action, target, previous, expected)
    record_audit(
        actor=INTERLOCK,
        action=action,
        target=target,
        before={"number_in_mlflow": previous},
        after={"number_in_mlflow": expected},
    )
