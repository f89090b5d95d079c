"""Which live rollouts a tick looks at, and in which order: read for all of them in a few queries.

What is left out would be looked at without any effect: its check interval has not passed, nobody
new has acked, nothing tripped. Whatever this overlooks, the next tick meets.
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
from apps.rollouts.steps import LEAVING, why_waiting


@dataclass(frozen=True)
class Due:
    """Live rollouts to be looked at.

    `urgent` are those of which a breaker tripped. `judged` are to be judged, the one that waits
    for it longest first, `moved` are all others, in any order. `waiting` only have another reason
    to be told why they wait: in each pair it is the second.
    """

    urgent: list[Rollout]
    moved: list[Rollout]
    judged: list[Rollout]
    waiting: list[tuple[Rollout, str]]

    def __iter__(self) -> Iterator[Rollout]:
        """Yield those to be looked at."""
        yield from (*self.urgent, *self.moved, *self.judged)


def find_due(roster: Roster) -> Due:
    """Return what is due by what the roster says and the rows say."""
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
            words = why_waiting(rollout, roster)
            if words != rollout.reason:
                due.waiting.append((rollout, words))
    due.judged.sort(key=lambda each: each.next_check_at or roster.now)
    # None of them is always the last where there is no time for all.
    random.shuffle(due.moved)
    return due


def _live() -> list[Rollout]:
    events = RolloutEvent.objects.filter(rollout=OuterRef("pk")).order_by("-id")
    rows = Rollout.objects.filter(phase__in=LIVE_PHASES).select_related("model")
    # What only a look needs is not parsed for all.
    rows = rows.defer("latency_reference", "stable_spread", "overrides")
    return list(rows.annotate(moved_at=Subquery(events.values("at")[:1])).order_by("started_at"))


def _tripped(rollouts: list[Rollout]) -> set[int]:
    """Return the models of which any version tripped since the first of the rollouts began."""
    if not rollouts:
        return set()
    since = min(rollout.started_at for rollout in rollouts)
    names = {rollout.model.name: rollout.model_id for rollout in rollouts}
    trips = BreakerTripRecord.objects.filter(last_at__gte=since, model_name__in=names)
    return {names[name] for name in trips.values_list("model_name", flat=True).distinct()}


def _is_judged(rollout: Rollout, now: datetime) -> bool:
    """Say whether a check interval of its step has passed."""
    if rollout.phase not in (Phase.BAKING, Phase.PAUSED) or rollout.step_index < 0:
        return False
    return rollout.next_check_at is not None and rollout.next_check_at <= now


def _moves(rollout: Rollout, roster: Roster) -> bool:
    """Say whether a look has another effect than to judge the step."""
    if _is_to_be_told(rollout, roster.now) or rollout.phase in (Phase.PENDING, Phase.PREPARING):
        return True
    if rollout.phase in LEAVING:
        return not roster.unacked(rollout.generation or 0)
    if roster.ahead:
        return True
    if rollout.phase == Phase.PAUSED:
        return rollout.step_index >= 0 and rollout.next_check_at is None
    if rollout.next_check_at is None or roster.pins_on(rollout.model.name):
        return True
    return rollout.step_due_at is None and not why_waiting(rollout, roster)


def _is_to_be_told(rollout: Rollout, now: datetime) -> bool:
    if rollout.held_told_revision == rollout.revision:
        return False
    moved_at: datetime | None = rollout.moved_at  # type: ignore[attr-defined]
    return is_long_enough(held_since_move(rollout, now, moved_at), now)
