"""The reconciler of rollouts: evaluates each live rollout that is due, and publishes once for all.

Level-triggered: an evaluation reads the row, does one step by its phase, and leaves the rest to the
next tick. A worker may die at any time; its transaction is rolled back and the next tick repeats.

A tick has two parts. First each evaluation runs in its own transaction and defers moves that change
the routing table. Then all moves are applied together with one table. They hold the publication
lock for at most TOGETHER_S plus one compilation: an abort may have to wait for that time.
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
from apps.rollouts.phases import enqueue_event
from apps.rollouts.publication import one_publication
from apps.rollouts.stalls import is_notification_due
from apps.rollouts.states import LIVE_PHASES
from apps.rollouts.steps import Move, StepContext, set_reason, take_step

log = logging.getLogger(__name__)

# A tick starts no evaluation after this CPU time; the longest waiting come first in the next.
EVALUATIONS_CPU_S = 0.5
TOGETHER_S = 1.0


def tick_rollouts() -> int:
    """Evaluate each live rollout that is due and not locked; return their number."""
    now = database_now()
    roster = read_roster(now)
    due = find_due(roster)
    tick = Tick(roster, query_services(due.judged, now), [])
    evaluated = tick.evaluate_all(due)
    for rollout, reason in due.waiting:
        set_reason(rollout, reason)
    _apply_all(tick.moves)
    return evaluated


@dataclass(frozen=True)
class Tick:
    """The evaluations of one tick, and the moves that they deferred."""

    roster: Roster
    external: dict[UUID, ServiceObservations]
    moves: list[Move]

    def evaluate_all(self, due: Due) -> int:
        """Evaluate due rollouts while there is time; return their number."""
        end = process_time() + EVALUATIONS_CPU_S
        evaluated = sum(map(self._evaluate, due.urgent))
        # Neither `moved` nor `judged` can use all of the time.
        moved, judged = iter(due.moved), iter(due.judged)
        for rollouts, until in ((moved, end - EVALUATIONS_CPU_S / 2), (judged, end), (moved, end)):
            while process_time() < until and (rollout := next(rollouts, None)) is not None:
                evaluated += self._evaluate(rollout)
        if next(moved, None) is not None or next(judged, None) is not None:
            log.info("rollout.tick_full: %d evaluated, the others wait", evaluated)
        return evaluated

    def _evaluate(self, rollout: Rollout) -> bool:
        moves: list[Move] = []
        try:
            is_evaluated = tick_one(
                rollout.pk, self.external.get(rollout.pk), self.roster, moves=moves
            )
        except Conflict as error:
            log.info("rollout.raced %s: %s", rollout.pk, error.message)
            return False
        except Exception:
            # The error of one rollout must not stop the guardrails of the others.
            log.exception("rollout.tick_failed %s", rollout.pk)
            return False
        # Only after the transaction, which stores the evidence of the moves.
        self.moves.extend(moves)
        return is_evaluated


@transaction.atomic
def tick_one(
    pk: UUID,
    external: ServiceObservations | None = None,
    roster: Roster | None = None,
    moves: list[Move] | None = None,
) -> bool:
    """Evaluate one rollout; return False when it has ended or is locked.

    Moves that change the routing table are deferred into `moves`; without it they are applied.
    """
    rollout = _try_lock(pk)
    if rollout is None:
        return False
    now = database_now()
    take_step(rollout, StepContext(now, roster or read_roster(now), external, moves))
    _notify_if_stalled(rollout, now)
    return True


def _apply_all(moves: list[Move]) -> None:
    """Apply the moves, rollbacks first."""
    left = sorted(moves, key=lambda each: not each.is_urgent)
    while left:
        try:
            applied = _apply_together(left)
        except Exception:
            # The joint table cannot be published: only the move that causes it must fail.
            log.exception("rollout.together_failed: %d moves are applied one by one", len(left))
            applied = len(left)
            for each in left:
                _apply_alone(each)
        left = left[applied:]


@transaction.atomic
def _apply_together(moves: list[Move]) -> int:
    """Apply moves within TOGETHER_S, with one publication; return their number."""
    until, applied = monotonic() + TOGETHER_S, 0
    with one_publication() as publication:
        for each in moves:
            try:
                with publication.part(), transaction.atomic():
                    _apply(each)
            except Conflict as error:
                log.info("rollout.raced %s: %s", each.rollout_id, error.message)
            applied += 1
            if monotonic() > until:
                break
    return applied


def _apply_alone(each: Move) -> None:
    try:
        with transaction.atomic():
            _apply(each)
    except Conflict as error:
        log.info("rollout.raced %s: %s", each.rollout_id, error.message)
    except Exception:
        log.exception("rollout.move_failed %s", each.rollout_id)


def _apply(each: Move) -> None:
    """Apply a move unless the rollout is locked or has changed since."""
    rollout = _try_lock(each.rollout_id)
    if rollout is None or rollout.revision != each.revision or not _try_lock_registry(rollout):
        # Usually an abort; otherwise the next tick evaluates it again.
        return
    each.apply(rollout, database_now())


def _try_lock_registry(rollout: Rollout) -> bool:
    """Lock the models and versions of the move; return False when one is already locked.

    Other writers lock such a row and then wait for the publication lock, which this transaction
    holds: waiting for the row would be a deadlock.
    """
    rows = [rollout]
    if rollout.release_id is not None:
        rows = list(Rollout.objects.filter(release=rollout.release_id, phase__in=LIVE_PHASES))
    versions = {row.target_id for row in rows} | {row.baseline_id for row in rows} - {None}
    return _try_lock_rows(RegisteredModel, {row.model_id for row in rows}) and _try_lock_rows(
        ModelVersion, versions
    )


def _try_lock_rows(table: type[RegisteredModel | ModelVersion], keys: set[Any]) -> bool:
    rows = table._default_manager.select_for_update(skip_locked=True, no_key=True, of=("self",))
    return len(rows.filter(pk__in=keys).values_list("pk")) == len(keys)


def _notify_if_stalled(rollout: Rollout, now: datetime) -> None:
    """Notify the subscribers of a stalled rollout, once per revision."""
    rollout.refresh_from_db(fields=["phase", "revision", "reason", "step_due_at"])
    if rollout.is_live and is_notification_due(rollout, now):
        rollout.held_told_revision = rollout.revision
        rollout.save(update_fields=["held_told_revision"])
        enqueue_event(rollout, "rollout.held", INTERLOCK, now)


def _try_lock(pk: UUID) -> Rollout | None:
    """Lock the row and those of its release; None when it has ended or one is already locked."""
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
