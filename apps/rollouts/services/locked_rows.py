"""Helpers of the services: row locks, rollouts of the same release, audit entries."""

from __future__ import annotations

from collections.abc import Collection

from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Forbidden
from apps.models.access import actor_has_role
from apps.models.audit import record_audit
from apps.models.models import Role
from apps.rollouts.models import Rollout
from apps.rollouts.phases import companions
from apps.rollouts.states import Phase


def lock_rollout(rollout: Rollout, revision: int | None) -> Rollout:
    """Return the row, locked. Raises Conflict when `revision` is stale."""
    rows = Rollout.objects.select_for_update(of=("self",))
    if rollout.release_id is not None:
        # All rows of a release, always in this order, so that two people cannot deadlock.
        list(rows.filter(release=rollout.release_id).order_by("pk"))
    row = rows.select_related("model", "target__model", "baseline__model").get(pk=rollout.pk)
    if revision is not None and row.revision != revision:
        raise Conflict(
            f"The rollout has changed in the meantime: it is {row.phase} ({row.reason})",
            revision=row.revision,
            phase=row.phase,
        )
    return row


def move_together(
    row: Rollout, phases: Collection[Phase], done: str, actor: Actor
) -> list[Rollout]:
    """Return the row and the others of its release, to be moved together.

    `done` is the action as a participle, for messages.

    Raises:
        Conflict: one is not in any of `phases`.
        Forbidden: `actor` is not operator of the model of another one.
    """
    rows = [row, *companions(row)]
    for each in rows:
        if each.phase not in phases:
            allowed = " or ".join(sorted(phases))
            subject = "The rollout" if each is row else f"{each.target} of the same release"
            raise Conflict(f"{subject} is {each.phase}; only a {allowed} rollout can be {done}")
    for each in rows[1:]:
        require_operator(each, actor)
    return rows


def require_operator(other: Rollout, actor: Actor) -> None:
    """Raise Forbidden unless `actor` may move another rollout of the same release."""
    if not actor_has_role(actor, other.model, Role.OPERATOR):
        raise Forbidden(
            f"{other.target} of the same release moves with it: this also needs the role operator "
            f"on model {other.model.name}."
        )


def audit_rollout(rollout: Rollout, action: str, actor: Actor, before: str = "") -> None:
    record_audit(
        actor=actor,
        action=f"rollout.{action}",
        target=f"{rollout.target} ({rollout.pk})",
        before={"phase": before} if before else {},
        after={"phase": str(rollout.phase), "weight_bp": rollout.weight_bp},
    )
