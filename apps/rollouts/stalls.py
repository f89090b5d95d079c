"""What waits must not wait unheard: who is told of a rollout that is held up, and when."""

from __future__ import annotations

from datetime import datetime, timedelta

from apps.rollouts.models import Rollout
from apps.rollouts.states import Phase

# A rollout that stands still for so long is told of, once for each state that it stands in.
TELL_AFTER = timedelta(minutes=10)


def held_since(rollout: Rollout, now: datetime) -> datetime | None:
    """Return since when the rollout stands still; None while it does what its plan says.

    A step that bakes is not held; one whose clock does not start, or whose time is over, is.
    """
    if rollout.phase == Phase.BAKING and rollout.step_due_at is not None:
        # Nobody need know when it moved.
        return held_since_move(rollout, now, None)
    moved_at = rollout.events.order_by("-id").values_list("at", flat=True).first()
    return held_since_move(rollout, now, moved_at)


def held_since_move(rollout: Rollout, now: datetime, moved_at: datetime | None) -> datetime | None:
    """Return what `held_since` does of a rollout whose last move was at `moved_at`."""
    if rollout.phase != Phase.BAKING or rollout.step_due_at is None:
        return moved_at or rollout.started_at
    return rollout.step_due_at if now > rollout.step_due_at else None


def is_to_be_told(rollout: Rollout, now: datetime) -> bool:
    """Say whether people should be told now that this rollout is held, and have not been."""
    if rollout.held_told_revision == rollout.revision:
        return False
    return is_long_enough(held_since(rollout, now), now)


def is_long_enough(since: datetime | None, now: datetime) -> bool:
    """Say whether what is held since then is held for so long that people are told."""
    return since is not None and now - since >= TELL_AFTER
