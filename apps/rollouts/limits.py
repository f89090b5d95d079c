"""How many rollouts may be under way at once; the others wait in the order of their start."""

from __future__ import annotations

from apps.rollouts.models import Rollout, RolloutPolicy
from apps.rollouts.states import LIVE_PHASES, Phase


def waits_for_its_turn(rollout: Rollout) -> str:
    """Return in words why a pending rollout may not begin yet, or nothing.

    Rolling back never waits. The policy's row is locked, so that two ticks cannot both take the
    last place.
    """
    policy = RolloutPolicy.objects.select_for_update().first()
    if policy is None or policy.concurrent_max is None or rollout.kind == Rollout.Kind.ROLLBACK:
        return ""
    under_way = Rollout.objects.filter(phase__in=LIVE_PHASES - {Phase.PENDING}).count()
    earlier = Rollout.objects.filter(
        phase=Phase.PENDING, started_at__lt=rollout.started_at
    ).exclude(kind=Rollout.Kind.ROLLBACK)
    ahead = earlier.count()
    if under_way + ahead < policy.concurrent_max:
        return ""
    told = f"{under_way} rollouts are under way"
    if ahead:
        told += f" and {ahead} wait before it"
    return f"waiting for its turn: {told}, at most {policy.concurrent_max} may run at once"
