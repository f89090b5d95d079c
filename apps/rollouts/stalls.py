"""Decides when a stalled rollout sends a notification."""

from __future__ import annotations

from datetime import datetime, timedelta

from apps.rollouts.models import Rollout
from apps.rollouts.states import Phase

# A rollout without progress for this time notifies once per state.
NOTIFY_AFTER = timedelta(minutes=10)


def held_since(rollout: Rollout, now: datetime) -> datetime | None:
    """Return since when the rollout is stalled; None while it follows its plan.

    A baking step is not stalled; a step whose clock does not start, or whose bake time is over, is.
    """
    if rollout.phase == Phase.BAKING and rollout.step_due_at is not None:
        # The time of the last event is not needed: no query.
        return held_since_move(rollout, now, None)
    moved_at = rollout.events.order_by("-id").values_list("at", flat=True).first()
    return held_since_move(rollout, now, moved_at)


def held_since_move(rollout: Rollout, now: datetime, moved_at: datetime | None) -> datetime | None:
    """Return `held_since` of a rollout whose last event was at `moved_at`."""
    if rollout.phase != Phase.BAKING or rollout.step_due_at is None:
        return moved_at or rollout.started_at
    return rollout.step_due_at if now > rollout.step_due_at else None


def is_notification_due(rollout: Rollout, now: datetime) -> bool:
    """Return whether a stalled rollout has to notify now, and has not at this revision."""
    if rollout.held_told_revision == rollout.revision:
        return False
    return is_long_enough(held_since(rollout, now), now)


def is_long_enough(since: datetime | None, now: datetime) -> bool:
    """Return whether a stall since then is long enough for a notification."""
    return since is not None and now - since >= NOTIFY_AFTER
