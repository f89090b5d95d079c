"""Selects the live rollouts that a tick evaluates, and their order, in a few queries.

A rollout is left out when an evaluation would have no effect: its check interval has not passed,
no instance has acked since, no breaker tripped. The next tick selects again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from django.db.models import OuterRef, Subquery

from apps.rollouts.fleet_status import Roster
from apps.rollouts.models import BreakerTripRecord, Rollout, RolloutEvent
from apps.rollouts.stalls import held_since_move, is_long_enough
from apps.rollouts.states import LIVE_PHASES, Phase
from apps.rollouts.steps import LEAVING, waiting_reason


@dataclass(frozen=True)
class Due:
    """Live rollouts to evaluate.

    `urgent`: a breaker of their model tripped. `judged`: their checks are due, the longest waiting
    first. `moved`: all others, in random order. `waiting`: pairs of a rollout that only gets a new
    reason, and that reason.
    """

    urgent: list[Rollout]
    moved: list[Rollout]
    judged: list[Rollout]
    waiting: list[tuple[Rollout, str]]

    def __iter__(self) -> Iterator[Rollout]:
        """Yield the rollouts to evaluate."""
        yield from (*self.urgent, *self.moved, *self.judged)


def find_due(roster: Roster) -> Due:
    """Return the rollouts that are due by the roster and the rows."""
    due = Due([], [], [], [])
    rollouts = _live()
    tripped = _tripped(rollouts)
    for rollout in rollouts:
        if rollout.phase in (Phase.BAKING, Phase.PAUSED) and rollout.model_id in tripped:
            due.urgent.append(rollout)
        elif _is_judged(rollout, roster.now):
            due.judged.append(rollout)
        elif _moves(rollout, roster):
            due.moved.append(rollout)
        elif rollout.phase == Phase.BAKING and rollout.step_due_at is None:
            reason = waiting_reason(rollout, roster)
            if reason != rollout.reason:
                due.waiting.append((rollout, reason))
    due.judged.sort(key=lambda each: each.next_check_at or roster.now)
    # No rollout is always the last one when there is no time for all.
    random.shuffle(due.moved)
    return due


def _live() -> list[Rollout]:
    events = RolloutEvent.objects.filter(rollout=OuterRef("pk")).order_by("-id")
    rows = Rollout.objects.filter(phase__in=LIVE_PHASES).select_related("model")
    # Large columns that only an evaluation needs are not parsed here.
    rows = rows.defer("latency_reference", "stable_spread", "overrides")
    return list(rows.annotate(moved_at=Subquery(events.values("at")[:1])).order_by("started_at"))


def _tripped(rollouts: list[Rollout]) -> set[int]:
    """Return the models with a breaker trip since the first of the rollouts started."""
    if not rollouts:
        return set()
    since = min(rollout.started_at for rollout in rollouts)
    names = {rollout.model.name: rollout.model_id for rollout in rollouts}
    trips = BreakerTripRecord.objects.filter(last_at__gte=since, model_name__in=names)
    return {names[name] for name in trips.values_list("model_name", flat=True).distinct()}


def _is_judged(rollout: Rollout, now: datetime) -> bool:
    """Return whether the checks of its step are due."""
    if rollout.phase not in (Phase.BAKING, Phase.PAUSED) or rollout.step_index < 0:
        return False
    return rollout.next_check_at is not None and rollout.next_check_at <= now


def _moves(rollout: Rollout, roster: Roster) -> bool:
    """Return whether an evaluation does anything besides judging the step."""
    if _is_notification_due(rollout, roster.now) or rollout.phase in (
        Phase.PENDING,
        Phase.PREPARING,
    ):
        return True
    if rollout.phase in LEAVING:
        return not roster.unacked(rollout.generation or 0)
    if roster.ahead:
        return True
    if rollout.phase == Phase.PAUSED:
        return rollout.step_index >= 0 and rollout.next_check_at is None
    if rollout.next_check_at is None or roster.pins_on(rollout.model.name):
        return True
    return rollout.step_due_at is None and not waiting_reason(rollout, roster)


def _is_notification_due(rollout: Rollout, now: datetime) -> bool:
    if rollout.held_told_revision == rollout.revision:
        return False
    moved_at: datetime | None = rollout.moved_at  # type: ignore[attr-defined]
    return is_long_enough(held_since_move(rollout, now, moved_at), now)
