"""The reconciler of rollouts: looks at each live rollout that is due, and publishes once for all.

Level-triggered: a look reads the row, does what its phase asks for, and leaves the rest to the next
tick. Any worker may die at any instant; the transaction is undone and the next tick repeats it.

A tick has two parts. Each look has a transaction of its own, and puts off what changes what serves.
Then these moves are made together, with one table for all of them. They hold the publication's lock
for TOGETHER_S at the most and a compilation longer: so long an abort may have to wait for them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from time import monotonic, process_time
from typing import Any
from uuid import UUID

from django.db import transaction

from apps.lib.actors import INTERLOCK
from apps.lib.clock import database_now
from apps.lib.errors import Conflict
from apps.models.models import ModelVersion, RegisteredModel
from apps.rollouts.due_rollouts import Due, find_due
from apps.rollouts.fleet_status import Roster, read_roster
from apps.rollouts.metric_providers import ServiceObservations, query_services
from apps.rollouts.models import Rollout
from apps.rollouts.phases import tell
from apps.rollouts.publication import one_publication
from apps.rollouts.stalls import is_to_be_told
from apps.rollouts.states import LIVE_PHASES
from apps.rollouts.steps import Look, Move, say, take_step

log = logging.getLogger(__name__)

# A tick begins no look after so much CPU: who waited longest for a look comes first in the next.
LOOKS_CPU_S = 0.5
TOGETHER_S = 1.0


def tick_rollouts() -> int:
    """Do one step on each live rollout that is due and that nobody else holds; return how many."""
    now = database_now()
    roster = read_roster(now)
    due = find_due(roster)
    tick = Tick(roster, query_services(due.judged, now), [])
    looked_at = tick.look_at_all(due)
    for rollout, words in due.waiting:
        say(rollout, words)
    _make_all(tick.moves)
    return looked_at


@dataclass(frozen=True)
class Tick:
    """The looks of one tick, and the moves that they put off."""

    roster: Roster
    asked: dict[UUID, ServiceObservations]
    moves: list[Move]

    def look_at_all(self, due: Due) -> int:
        """Look at what is due while there is time; return at how many."""
        end = process_time() + LOOKS_CPU_S
        looked_at = sum(map(self._look_at, due.urgent))
        # Neither what moves nor what is to be judged takes all of the time from the other.
        moved, judged = iter(due.moved), iter(due.judged)
        for some, until in ((moved, end - LOOKS_CPU_S / 2), (judged, end), (moved, end)):
            while process_time() < until and (rollout := next(some, None)) is not None:
                looked_at += self._look_at(rollout)
        if next(moved, None) is not None or next(judged, None) is not None:
            log.info("rollout.tick_full: %d looked at, the others wait", looked_at)
        return looked_at

    def _look_at(self, rollout: Rollout) -> bool:
        moves: list[Move] = []
        try:
            is_looked_at = tick_one(
                rollout.pk, self.asked.get(rollout.pk), self.roster, moves=moves
            )
        except Conflict as error:
            log.info("rollout.raced %s: %s", rollout.pk, error.message)
            return False
        except Exception:
            # One rollout's fault must not keep the others from their guardrails.
            log.exception("rollout.tick_failed %s", rollout.pk)
            return False
        # Only now, that what they were decided from is stored.
        self.moves.extend(moves)
        return is_looked_at


@transaction.atomic
def tick_one(
    pk: UUID,
    asked: ServiceObservations | None = None,
    roster: Roster | None = None,
    moves: list[Move] | None = None,
) -> bool:
    """Do one step on one rollout; False when it has ended or somebody else holds it.

    What changes what serves is put off into `moves`, or done at once without.
    """
    rollout = _hold(pk)
    if rollout is None:
        return False
    now = database_now()
    take_step(rollout, Look(now, roster or read_roster(now), asked, moves))
    _tell_if_held(rollout, now)
    return True


def _make_all(moves: list[Move]) -> None:
    """Make the moves, those that go back first."""
    left = sorted(moves, key=lambda each: not each.is_urgent)
    while left:
        try:
            made = _make_together(left)
        except Exception:
            # Together they make a table that cannot be published: find the one, keep the others.
            log.exception("rollout.together_failed: %d moves are made one by one", len(left))
            made = len(left)
            for each in left:
                _make_alone(each)
        left = left[made:]


@transaction.atomic
def _make_together(moves: list[Move]) -> int:
    """Make as many moves as there is time for, with one publication; return how many."""
    until, made = monotonic() + TOGETHER_S, 0
    with one_publication() as publication:
        for each in moves:
            try:
                with publication.part(), transaction.atomic():
                    _make(each)
            except Conflict as error:
                log.info("rollout.raced %s: %s", each.rollout_id, error.message)
            made += 1
            if monotonic() > until:
                break
    return made


def _make_alone(each: Move) -> None:
    try:
        with transaction.atomic():
            _make(each)
    except Conflict as error:
        log.info("rollout.raced %s: %s", each.rollout_id, error.message)
    except Exception:
        log.exception("rollout.move_failed %s", each.rollout_id)


def _make(each: Move) -> None:
    """Make a move unless somebody else holds the rollout, or has moved it since."""
    rollout = _hold(each.rollout_id)
    if rollout is None or rollout.revision != each.revision or not _hold_registry(rollout):
        # An abort has come, or comes: where it does not, the next tick looks again.
        return
    each.make(rollout, database_now())


def _hold_registry(rollout: Rollout) -> bool:
    """Lock the models and versions that the move is about; False where somebody else holds one.

    Whoever changes one of them holds its row and then waits for the publication's lock, which we
    have: waiting for the row would be a deadlock.
    """
    rows = [rollout]
    if rollout.release_id is not None:
        rows = list(Rollout.objects.filter(release=rollout.release_id, phase__in=LIVE_PHASES))
    versions = {row.target_id for row in rows} | {row.baseline_id for row in rows} - {None}
    return _holds(RegisteredModel, {row.model_id for row in rows}) and _holds(
        ModelVersion, versions
    )


def _holds(table: type[RegisteredModel | ModelVersion], keys: set[Any]) -> bool:
    rows = table._default_manager.select_for_update(skip_locked=True, no_key=True, of=("self",))
    return len(rows.filter(pk__in=keys).values_list("pk")) == len(keys)


def _tell_if_held(rollout: Rollout, now: datetime) -> None:
    """Let nobody wait unheard: who asked for it is told once of each state that lasts long."""
    rollout.refresh_from_db(fields=["phase", "revision", "reason", "step_due_at"])
    if rollout.is_live and is_to_be_told(rollout, now):
        rollout.held_told_revision = rollout.revision
        rollout.save(update_fields=["held_told_revision"])
        tell(rollout, "rollout.held", INTERLOCK, now)


def _hold(pk: UUID) -> Rollout | None:
    """Lock the row, and with it those of its release; None when it ended or is somebody else's."""
    rows = Rollout.objects.select_for_update(skip_locked=True, of=("self",))
    live = rows.filter(phase__in=LIVE_PHASES)
    related = ("model", "target__model", "baseline__model", "release")
    rollout = live.filter(pk=pk).select_related(*related).first()
    if rollout is None or rollout.release_id is None:
        return rollout
    release = rollout.release_id
    together = Rollout.objects.filter(release=release, phase__in=LIVE_PHASES)
    if len(live.filter(release=release).order_by("pk")) < together.count():
        return None
    return rollout
