"""State machines as tables: what may follow what, how a change is made, and what it leaves behind.

A change is compare-and-set on `(state, revision)`; nought rows means that somebody was faster.
The same transaction appends a transition row, which history, audit and timelines read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from django.db import models

from apps.lib.errors import Conflict

S = TypeVar("S", bound=models.TextChoices)


class IllegalTransition(Conflict):
    code = "illegal_transition"


class Transitions(Generic[S]):
    """A complete table of legal transitions over an enum of states."""

    def __init__(self, table: Mapping[S, frozenset[S]]) -> None:
        self.table = table
        self.final = frozenset(state for state, following in table.items() if not following)
        self.live = frozenset(table) - self.final

    def allows(self, old: S, new: S) -> bool:
        return new in self.table[old]

    def check(self, what: str, old: S, new: S) -> None:
        """Raise IllegalTransition unless `new` may follow `old`."""
        if not self.allows(old, new):
            allowed = ", ".join(sorted(self.table[old])) or "nothing: it is final"
            raise IllegalTransition(
                f"{what} is {old} and cannot become {new} (allowed: {allowed})",
                state=old,
            )


class Transition(models.Model):
    """One row per transition: who, why, the evidence. Appended, never changed."""

    from_state = models.CharField(max_length=20)
    to_state = models.CharField(max_length=20)
    reason = models.TextField()
    actor = models.CharField(max_length=150, default="interlock")
    evidence = models.JSONField(default=dict)
    at = models.DateTimeField(db_index=True)

    class Meta:
        abstract = True
        ordering = ["id"]


def compare_and_set(row: models.Model, *, state_field: str, **changes: Any) -> None:
    """Write `changes` to `row` if its state and revision are still those that were read.

    Raises:
        Conflict: another actor changed the row first; nothing was written.
    """
    manager = type(row)._default_manager
    state, revision = getattr(row, state_field), row.revision  # type: ignore[attr-defined]
    changes["revision"] = revision + 1
    guard = {"pk": row.pk, state_field: state, "revision": revision}
    if manager.filter(**guard).update(**changes) == 0:
        raise Conflict(
            f"{row._meta.verbose_name} {row.pk} was changed by somebody else meanwhile",
            revision=revision,
        )
    for name, value in changes.items():
        setattr(row, name, value)
