"""State machines as transition tables, with compare-and-set changes and a log of transitions.

A change is a compare-and-set on `(state, revision)`; zero updated rows mean that another change
came first. The same transaction appends a transition row for history, audit and timelines.
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
    """The complete table of legal transitions between the states of an enum."""

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
    """One row per transition with actor, reason and evidence. Append-only."""

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
    """Write `changes` to `row` if its state and revision in the database are unchanged.

    Raises:
        Conflict: another actor changed the row first; nothing was written.
    """
    manager = type(row)._default_manager
    state, revision = getattr(row, state_field), row.revision  # type: ignore[attr-defined]
    changes["revision"] = revision + 1
    guard = {"pk": row.pk, state_field: state, "revision": revision}
    if manager.filter(**guard).update(**changes) == 0:
        raise Conflict(
            f"{row._meta.verbose_name} {row.pk} was changed by another user or task meanwhile",
            revision=revision,
        )
    for name, value in changes.items():
        setattr(row, name, value)
