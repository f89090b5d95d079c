"""The limit of concurrent rollouts; later ones wait in the order of their start."""

from __future__ import annotations

from uuid import UUID

from django.db.models import QuerySet

from apps.rollouts.models import Rollout, RolloutPolicy
from apps.rollouts.states import LIVE_PHASES, Phase


def queue_reason(rollout: Rollout) -> str:
    """Return why a pending rollout may not begin yet; empty when it may.

    A rollback never waits. The row of the policy is locked, so that two ticks cannot both take
    the last place.
    """
    policy = RolloutPolicy.objects.select_for_update().first()
    if policy is None or policy.concurrent_max is None or rollout.kind == Rollout.Kind.ROLLBACK:
        return ""
    under_way = _places(Rollout.objects.filter(phase__in=LIVE_PHASES - {Phase.PENDING}))
    if _place(rollout.release_id, rollout.pk) in under_way:
        return ""
    earlier = Rollout.objects.filter(
        phase=Phase.PENDING, started_at__lt=rollout.started_at
    ).exclude(kind=Rollout.Kind.ROLLBACK)
    ahead = _places(earlier) - under_way
    if len(under_way | ahead) < policy.concurrent_max:
        return ""
    load = f"{len(under_way)} rollouts are under way"
    if ahead:
        load += f" and {len(ahead)} are ahead in the queue"
    return f"queued: {load}, at most {policy.concurrent_max} may run at once"


def _places(rollouts: QuerySet[Rollout]) -> set[UUID]:
    return {_place(*row) for row in rollouts.values_list("release_id", "pk")}


def _place(release_id: UUID | None, pk: UUID) -> UUID:
    """Return the id that takes a place: a release takes one for all of its models."""
    return pk if release_id is None else release_id
