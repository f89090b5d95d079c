"""Aliases follow MLflow both ways: a level-triggered comparison of its aliases with ours.

`champion` is ours: it names the stable version, and MLflow's is made to follow it, whoever moved
it there. Every other alias is MLflow's as much as ours, and whoever moved it last wins: what was
set here is `is_pending` until MLflow has it, and nothing that was listed before it is copied over
it. MLflow being away delays all this and breaks nothing.
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
# MLflow's own rules; a number would be taken for a version's.
ALIAS_PATTERN = re.compile(r"(?![vV]?\d+$)[A-Za-z0-9_-]{1,100}")
ALIAS_RULE = (
    "An alias has at most 100 letters, digits, dashes and underscores, and is neither a number, "
    'nor "v" and a number, nor "latest".'
)


def check_alias(name: str) -> None:
    """Raise Invalid when nobody may set that alias: `champion`, or what MLflow would refuse."""
    if name == CHAMPION:
        raise Invalid(
            f"{CHAMPION} names the stable version: promote a version, or roll back, to move it."
        )
    if not ALIAS_PATTERN.fullmatch(name) or name.lower() == "latest":
        raise Invalid(f"{name!r} cannot be an alias. {ALIAS_RULE}")


@transaction.atomic
def move_alias(*, name: str, version: ModelVersion, actor: Actor) -> Alias:
    """Make an alias of the version's model name it: here at once, in MLflow soon after.

    Raises:
        Invalid: there cannot be such an alias, or it is `champion`.
        Conflict: the version is archived or deleted.
    """
    check_alias(name)
    model = RegisteredModel.objects.select_for_update(of=("self",)).get(pk=version.model_id)
    require_active([version])
    found = model.aliases.select_related("version").filter(name=name).first()
    if found is not None and found.version_id == version.pk:
        return found
    defaults = {"version": version, "is_pending": bool(settings.MLFLOW_TRACKING_URI)}
    alias, _ = Alias.objects.update_or_create(model=model, name=name, defaults=defaults)
    record_audit(
        actor=actor,
        action="alias.moved",
        target=f"{model.name}@{name}",
        before={"version": found.version.number} if found else {},
        after={"version": version.number},
    )
    transaction.on_commit(hint_sync)
    return alias


def delete_alias(*, model: RegisteredModel, name: str, actor: Actor) -> None:
    """Take an alias away, in MLflow first: a row that is gone could not remember to.

    Raises:
        Invalid: it is `champion`.
        NotFound: it is not there.
        Unavailable: MLflow does not answer; nothing was changed.
    """
    check_alias(name)
    found = model.aliases.select_related("version").filter(name=name).first()
    if found is None:
        raise NotFound(f"{model.name} has no alias {name!r}.")
    if settings.MLFLOW_TRACKING_URI:
        with connect() as client, suppress(NotFound):
            client.delete_alias(model.name, name)
    with transaction.atomic():
        Alias.objects.filter(pk=found.pk).delete()
        record_audit(
            actor=actor,
            action="alias.deleted",
            target=f"{model.name}@{name}",
            before={"version": found.version.number},
        )


def copy_aliases(models: Mapping[str, RegistryModel], listed_at: datetime) -> int:
    """Make our aliases those that MLflow had at `listed_at`; return how many moved or went.

    `champion`, what MLflow does not have yet, and what was set here since stay as they are. So does
    an alias of a version that is not MLflow's, until somebody sets it there. A model whose aliases
    cannot be copied keeps its own, says why on its page, and holds up no other one.
    """
    moved = 0
    for owner in RegisteredModel.objects.filter(name__in=list(models)):
        problem = ""
        try:
            with transaction.atomic():
                moved += _copy_of_model(owner, models[owner.name].aliases, listed_at)
        except Exception as error:
            log.exception("registry.aliases_failed %s", owner.name)
            problem = f"Its aliases in MLflow cannot be copied: {type(error).__name__}: {error}"
        if problem != owner.registry_problem:
            RegisteredModel.objects.filter(pk=owner.pk).update(registry_problem=problem)
    return moved


def _copy_of_model(owner: RegisteredModel, theirs: Mapping[str, int], listed_at: datetime) -> int:
    wanted = {name: number for name, number in theirs.items() if name != CHAMPION}
    # MLflow may go on having what was deleted here, and aliases of it.
    known = owner.versions.kept().exclude(registry_number=None)
    versions = {v.registry_number: v for v in known}
    ours = {a.name: a for a in owner.aliases.exclude(name=CHAMPION).select_related("version")}
    moved = 0
    for name in {*wanted, *ours}:
        alias = ours.get(name)
        if alias is not None and (alias.is_pending or alias.changed_at >= listed_at):
            continue
        moved += _copy(owner, name, alias, name in wanted, versions.get(wanted.get(name, -1)))
    return moved


def _copy(
    owner: RegisteredModel,
    name: str,
    alias: Alias | None,
    is_there: bool,
    version: ModelVersion | None,
) -> int:
    """Make one alias name `version`, or go where MLflow's names a version that we do not have."""
    before = alias.version if alias else None
    if before == version or (before and not is_there and before.registry_number is None):
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
    """Write to MLflow what its aliases lack; return `model@alias` of those written.

    Only models that MLflow has are looked at, and `champion` only while it names a version that is
    MLflow's. One that MLflow cannot take now is written by a later run. Raises NotReached: so is
    the rest.
    """
    ours = Alias.objects.filter(Q(name=CHAMPION) | Q(is_pending=True), model__name__in=models)
    written = []
    for alias in ours.select_related("model", "version").order_by("model__name", "name"):
        has = models[alias.model.name].aliases.get(alias.name)
        push = _push_champion if alias.name == CHAMPION else _push_pending
        try:
            if push(client, alias, has):
                written.append(f"{alias.model.name}@{alias.name}")
        except NotReached:
            raise
        except (Invalid, NotFound) as error:
            _give_up(alias, error.message)
        except InterlockError as error:
            log.warning("alias.not_written %s@%s: %s", alias.model.name, alias.name, error.message)
    return tuple(written)


def _push_champion(client: MlflowClient, alias: Alias, has: int | None) -> bool:
    wants = alias.version.registry_number
    if wants is None:
        return False
    by_hand = alias.written_number not in (None, has)
    if has != wants:
        client.set_alias(alias.model.name, CHAMPION, wants)
        _tell("alias.restored" if by_hand else "alias.pushed", alias, has)
    if alias.written_number != wants:
        # By query: `changed_at` tells when the alias moved here.
        Alias.objects.filter(pk=alias.pk).update(written_number=wants)
    return has != wants


def _push_pending(client: MlflowClient, alias: Alias, has: int | None) -> bool:
    wants = alias.version.registry_number
    if wants is None and has is not None:
        client.delete_alias(alias.model.name, alias.name)
    elif wants is not None and has != wants:
        client.set_alias(alias.model.name, alias.name, wants)
    _settle(alias)
    if has != wants:
        _tell("alias.pushed", alias, has)
    return has != wants


def _give_up(alias: Alias, reason: str) -> None:
    """MLflow has no such version any more, say. `champion` is tried again, as stable is stable."""
    log.warning("alias.refused %s@%s: %s", alias.model.name, alias.name, reason)
    if alias.is_pending and _settle(alias):
        record_audit(
            actor=INTERLOCK,
            action="alias.refused",
            target=f"{alias.model.name}@{alias.name}",
            after={"reason": reason},
        )


def _settle(alias: Alias) -> bool:
    """Let MLflow have its say again, from now on, unless the alias moved on here meanwhile."""
    rows = Alias.objects.filter(pk=alias.pk, version=alias.version, is_pending=True)
    return rows.update(is_pending=False, changed_at=timezone.now()) == 1


def _tell(action: str, alias: Alias, has: int | None) -> None:
    target = f"{alias.model.name}@{alias.name}"
    wants = alias.version.registry_number
    # A hand that moved `champion` there is told louder than our own pushes.
    level = logging.WARNING if action == "alias.restored" else logging.INFO
    log.log(level, "%s %s in MLflow from %s to %s", action, target, has, wants)
    record_audit(
        actor=INTERLOCK,
        action=action,
        target=target,
        before={"number_in_mlflow": has},
        after={"number_in_mlflow": wants},
    )
