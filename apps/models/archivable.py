"""The columns and the lock that versions and models share, since both can be archived and deleted.

Whoever retires one locks the model's row, and so does whoever begins to need a version: a rollout,
an experiment, a placing, by `hold_active`. So one of two that meet comes second and sees what the
first one did. It is locked before any row of a deployment, or two might wait crosswise.
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
        """Return those that lists show by default."""
        return self.filter(state=RegistryState.ACTIVE)

    def kept(self) -> RetirableQuerySet[R]:
        """Return the active and the archived ones."""
        return self.filter(state__in=(RegistryState.ACTIVE, RegistryState.ARCHIVED))


class Retirable(models.Model):
    """What can be archived and restored, and deleted but for what history reads of it."""

    state = models.CharField(
        max_length=20,
        choices=RegistryState.choices,
        default=RegistryState.ACTIVE,
        db_default=RegistryState.ACTIVE,
    )
    # When that last changed, by whom, and the reason that was given; None: never.
    state_at = models.DateTimeField(null=True, blank=True)
    state_by = models.CharField(max_length=150, blank=True, default="", db_default="")
    state_reason = models.TextField(blank=True, default="", db_default="")
    # What a deletion waits for; empty: nothing.
    state_problem = models.TextField(blank=True, default="", db_default="")

    class Meta:
        abstract = True

    @property
    def actor(self) -> Actor:
        """Return who changed the state last."""
        return Actor(self.state_by, "")

    @property
    def is_active(self) -> bool:
        return self.state == RegistryState.ACTIVE

    @property
    def is_archived(self) -> bool:
        return self.state == RegistryState.ARCHIVED

    @property
    def is_deleted(self) -> bool:
        """Deleted, or about to be: nothing leads back."""
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
        """Make one transition of a row that is locked; `also` are further columns to write.

        Raises:
            Conflict: the transition is not legal.
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


def hold_active(versions: Iterable[ModelVersion]) -> None:
    """Do as `require_active`, and keep it true until the transaction ends: the model is locked."""
    versions = list(versions)
    if versions:
        # A foreign key is checked at the end of a transaction only: it makes nobody wait.
        models = type(versions[0].model)._default_manager.select_for_update(no_key=True)
        list(models.filter(pk__in={v.model_id for v in versions}).order_by("pk").values("pk"))
    require_active(versions)


def require_active(versions: Iterable[ModelVersion]) -> None:
    """Raise Conflict when one of the versions, or its model, is archived or deleted by now."""
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
