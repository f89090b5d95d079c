"""Columns and locking that versions and models share: both can be archived and deleted.

Both sides lock the row of the model: a retirement, and by `lock_active` each start of a use (a
rollout, an experiment, a deployment). The second of two concurrent transactions therefore sees the
result of the first. Lock the model before any deployment row, or a deadlock is possible.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from django.db import models

from apps.lib.actors import Actor
from apps.lib.errors import Conflict
from apps.lib.transitions import Transitions
from apps.models.states import RegistryState

if TYPE_CHECKING:
    from apps.models.models import ModelVersion

R = TypeVar("R", bound="Retirable")


class RetirableQuerySet(models.QuerySet[R]):
    def active(self) -> RetirableQuerySet[R]:
        """Filter the active ones, which lists show by default."""
        return self.filter(state=RegistryState.ACTIVE)

    def kept(self) -> RetirableQuerySet[R]:
        """Filter the active and the archived ones."""
        return self.filter(state__in=(RegistryState.ACTIVE, RegistryState.ARCHIVED))


class Retirable(models.Model):
    """A row that can be archived, restored and deleted; a deleted row stays for the history."""

    state = models.CharField(
        max_length=20,
        choices=RegistryState.choices,
        default=RegistryState.ACTIVE,
        db_default=RegistryState.ACTIVE,
    )
    # The last change of the state: time (None: never), user and reason.
    state_at = models.DateTimeField(null=True, blank=True)
    state_by = models.CharField(max_length=150, blank=True, default="", db_default="")
    state_reason = models.TextField(blank=True, default="", db_default="")
    # What a deletion waits for, or empty.
    state_problem = models.TextField(blank=True, default="", db_default="")

    class Meta:
        abstract = True

    @property
    def actor(self) -> Actor:
        """The user who last changed the state."""
        return Actor(self.state_by, "")

    @property
    def is_active(self) -> bool:
        return self.state == RegistryState.ACTIVE

    @property
    def is_archived(self) -> bool:
        return self.state == RegistryState.ARCHIVED

    @property
    def is_deleted(self) -> bool:
        """Whether it is deleted or being deleted, which cannot be undone."""
        return self.state in {RegistryState.DELETING, RegistryState.DELETED}

    def save_state(
        self,
        table: Transitions[RegistryState],
        new: RegistryState,
        *,
        actor: Actor,
        now: datetime,
        reason: str = "",
        **also: Any,
    ) -> None:
        """Change the state of a locked row; `also` are further columns to write.

        Raises:
            Conflict: the transition is not allowed.
        """
        table.check(str(self), RegistryState(self.state), new)
        changes = {
            "state": new,
            "state_at": now,
            "state_by": actor.name,
            "state_reason": reason,
            "state_problem": "",
            **also,
        }
        for name, value in changes.items():
            setattr(self, name, value)
        self.save(update_fields=list(changes))


def lock_active(versions: Iterable[ModelVersion]) -> None:
    """Lock the models of `versions` until the transaction ends; raise as `require_active` does."""
    versions = list(versions)
    if versions:
        # NO KEY: inserts that refer to the model by a foreign key do not wait.
        models = type(versions[0].model)._default_manager.select_for_update(no_key=True)
        list(models.filter(pk__in={v.model_id for v in versions}).order_by("pk").values("pk"))
    require_active(versions)


def require_active(versions: Iterable[ModelVersion]) -> None:
    """Raise Conflict if one of the versions, or its model, is archived or deleted."""
    versions = list(versions)
    if not versions:
        return
    rows = type(versions[0])._default_manager.filter(pk__in=[version.pk for version in versions])
    for row in rows.select_related("model").order_by("number"):
        for each in (row.model, row):
            if not each.is_active:
                raise Conflict(f"{each} is {each.state}{_remedy(each)}", state=each.state)


def _remedy(row: Retirable) -> str:
    return ": restore it first" if row.is_archived else ""
