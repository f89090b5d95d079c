"""The reconciler of rollouts: one bounded step for each live rollout that is due, then commit.

Level-triggered: a tick reads the row, does what its phase asks for, and leaves the rest to the next
one. Any worker may die at any instant; the transaction is undone and the next tick repeats it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction

from apps.lib.actors import INTERLOCK
from apps.lib.clock import database_now
from apps.lib.errors import Conflict
from apps.models.models import Deployment
from apps.models.services import deploy_version, release_split
from apps.models.states import DeploymentState
from apps.rollouts.decisions import Action, Answered, Decision
from apps.rollouts.evaluation import evaluate, next_look
from apps.rollouts.holds import is_to_be_told
from apps.rollouts.limits import waits_for_its_turn
from apps.rollouts.models import Rollout
from apps.rollouts.observers import Asked, ask_services, has_answers
from apps.rollouts.overrides import holding_freeze
from apps.rollouts.phases import (
    CLOCK_STOPPED,
    companions,
    enter_step,
    move,
    roll_back,
    switch_stable,
    tell,
)
from apps.rollouts.plans import PlanDocument, from_json
from apps.rollouts.roster import Roster, read_roster, why_ahead
from apps.rollouts.states import LIVE_PHASES, Phase
from apps.rollouts.trips import trip_of_target
from contract.generations import in_words

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """What one look at a rollout goes by, besides its row.

    `asked` is what services outside answered for it, if they were asked.
    """

    now: datetime
    roster: Roster
    asked: Asked | None = None


# What a rollout does in a phase.
Step = Callable[[Rollout, Look], None]


def tick_rollouts() -> int:
    """Do one step on each live rollout that nobody else holds; return how many were looked at."""
    looked_at = 0
    live = list(Rollout.objects.filter(phase__in=LIVE_PHASES).order_by("started_at"))
    asked = ask_services(live, database_now())
    roster = read_roster(database_now())
    for pk in [rollout.pk for rollout in live]:
        try:
            looked_at += tick_one(pk, asked.get(pk), roster)
        except Conflict as error:
            log.info("rollout.raced %s: %s", pk, error.message)
        except Exception:
            # One rollout's fault must not keep the others from their guardrails.
            log.exception("rollout.tick_failed %s", pk)
    return looked_at


@transaction.atomic
def tick_one(pk: UUID, asked: Asked | None = None, roster: Roster | None = None) -> bool:
    """Do one step on one rollout; False when it has ended or somebody else holds it."""
    rollout = _hold(pk)
    if rollout is None:
        return False
    now = database_now()
    look = Look(now, roster or read_roster(now), asked)
    if look.roster.ahead and rollout.phase not in LEAVING:
        _hold_for_epoch(rollout, look.roster)
    else:
        STEPS[Phase(rollout.phase)](rollout, look)
    _tell_if_held(rollout, now)
    return True


# What goes on only when every instance serves the table anyway; its reason stays.
LEAVING = frozenset({Phase.PROMOTING, Phase.ROLLING_BACK})


def _hold_for_epoch(rollout: Rollout, roster: Roster) -> None:
    """Judge nothing by what was measured under tables that this database knows nothing of."""
    first = roster.ahead[0]
    say(rollout, f"held: instance {first.name} {why_ahead(first, roster.epoch)}")


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
    release = Rollout.objects.filter(pk=pk).values_list("release_id", flat=True).first()
    if release is not None:
        together = Rollout.objects.filter(release=release, phase__in=LIVE_PHASES)
        if len(live.filter(release=release).order_by("pk")) < together.count():
            return None
    held = live.filter(pk=pk).select_related("model", "target__model", "baseline__model", "release")
    return held.first()


def say(rollout: Rollout, reason: str) -> None:
    """Tell on the page why nothing moves; no transition, so the revision stays."""
    if rollout.reason != reason:
        Rollout.objects.filter(pk=rollout.pk, revision=rollout.revision).update(reason=reason)


def _start(rollout: Rollout, look: Look) -> None:
    if told := waits_for_its_turn(rollout):
        say(rollout, told)
        return
    deploy_version(version=rollout.target, actor=INTERLOCK, now=look.now)
    move(rollout, Phase.PREPARING, "loading and warming the target", INTERLOCK, look.now)


def _prepare(rollout: Rollout, look: Look) -> None:
    now = look.now
    deployments = list(Deployment.objects.filter(version=rollout.target))
    failed = [d for d in deployments if d.state == DeploymentState.FAILED]
    if failed:
        _fail(rollout, f"{rollout.target} could not be served: {failed[0].reason}", now)
    elif not any(d.state == DeploymentState.READY for d in deployments):
        _withdraw(rollout)
        told = deployments[0].reason if deployments else ""
        state = deployments[0].state if deployments else "not placed"
        say(rollout, f"the target is {state}{': ' + told if told else ''}")
    elif _held_by_freeze(rollout, now):
        _withdraw(rollout)
    elif rollout.kind == Rollout.Kind.CANARY:
        _advance(rollout, "the target is ready", now, None)
    else:
        switch_stable(rollout, WITHOUT_STEPS[Rollout.Kind(rollout.kind)], INTERLOCK, now, None)


WITHOUT_STEPS = {
    Rollout.Kind.FIRST: "the model's first version: nothing to compare with",
    Rollout.Kind.ROLLBACK: "instant rollback, without steps",
    Rollout.Kind.SWITCH: "it takes other requests than stable, so they cannot share traffic",
}


def _fail(rollout: Rollout, reason: str, now: datetime) -> None:
    release_split(owner_id=rollout.pk)
    move(rollout, Phase.FAILED, reason, INTERLOCK, now)
    # One of the others takes the rest of the release back with it.
    for other in companions(rollout)[:1]:
        if other.phase != Phase.ROLLING_BACK:
            roll_back(other, f"with {rollout.target} of the same release: {reason}", INTERLOCK, now)


def _bake(rollout: Rollout, look: Look) -> None:
    """The rules in their order: trips, pins, acks, clock, checks, decision."""
    now = look.now
    if _rolled_back_by_trip(rollout, now):
        return
    plan = from_json(rollout.plan_document)
    if pins := look.roster.pins_on(rollout.model.name):
        _hold_pinned(rollout, plan, pins, look)
        return
    if rollout.step_due_at is None and not _start_clock(rollout, plan, look):
        _guard_while_held(rollout, plan, look)
        return
    if not _checks_due(rollout, plan, look):
        return
    decision, answers = _evaluate(rollout, plan, look)
    evidence = _evidence_of(answers)
    if decision.action is not Action.ADVANCE:
        _withdraw(rollout)
    if decision.action is Action.ROLL_BACK:
        roll_back(rollout, decision.reason, INTERLOCK, now, evidence)
    elif decision.action is Action.PAUSE:
        move(rollout, Phase.PAUSED, decision.reason, INTERLOCK, now, evidence=evidence)
    elif decision.action is Action.ADVANCE:
        _let_pass(rollout, decision.reason, look, evidence)
    else:
        say(rollout, decision.reason)


def _evaluate(rollout: Rollout, plan: PlanDocument, look: Look) -> tuple[Decision, list[Answered]]:
    return evaluate(rollout, plan, look.asked.answers if look.asked else {}, look.now)


def _evidence_of(answers: list[Answered]) -> dict[str, Any]:
    return {"checks": {each.check.label: each.result.evidence for each in answers}}


def _hold_pinned(rollout: Rollout, plan: PlanDocument, pins: list[str], look: Look) -> None:
    """Hold while an instance sends the canary nothing; the step bakes anew once it does again."""
    _withdraw(rollout)
    if rollout.step_due_at is not None:
        rollout.step_due_at = rollout.step_limit_at = None
        rollout.save(update_fields=["step_due_at", "step_limit_at"])
    if not _guard_while_held(rollout, plan, look):
        say(rollout, f"held, as the split has no effect everywhere: {'; '.join(pins)}")


def _guard_while_held(rollout: Rollout, plan: PlanDocument, look: Look) -> bool:
    """Ask the guardrails while a clock stands: instances that are not behind serve the canary."""
    if rollout.next_check_at is None:
        rollout.next_check_at = next_look(rollout, plan, look.now)
        rollout.save(update_fields=["next_check_at"])
        return False
    return _rolled_back_by_checks(rollout, plan, look)


def _withdraw(rollout: Rollout) -> None:
    """Let the rest of the release no longer count on what had passed."""
    if rollout.step_passed_at is not None:
        rollout.step_passed_at = None
        rollout.save(update_fields=["step_passed_at"])


def _let_pass(rollout: Rollout, reason: str, look: Look, evidence: dict[str, Any]) -> None:
    """The checks and the gate let the step pass; see that nothing else holds it."""
    if behind := look.roster.unacked(rollout.generation or 0):
        say(rollout, f"the step may pass, but is held: {_tell_behind(behind)}")
        _withdraw(rollout)
    elif _held_by_freeze(rollout, look.now):
        _withdraw(rollout)
    else:
        _advance(rollout, reason, look.now, evidence)


def _held_by_freeze(rollout: Rollout, now: datetime) -> bool:
    """Say so, and hold, while a freeze window is open that nobody overrode; going back may."""
    freeze = holding_freeze(rollout, now)
    if freeze is None:
        return False
    say(rollout, f"held by a freeze until {freeze.words}: {freeze.reason}")
    return True


def _advance(rollout: Rollout, reason: str, now: datetime, evidence: dict[str, Any] | None) -> None:
    """Go on to the next step, or to stable; the models of a release only all at once."""
    others = companions(rollout)
    if rollout.release_id is None:
        _take_next_step(rollout, reason, now, evidence)
        return
    if rollout.step_passed_at is None:
        rollout.step_passed_at = now
        rollout.save(update_fields=["step_passed_at"])
    waiting = [other for other in others if not _has_passed(other, rollout)]
    if waiting:
        names = ", ".join(str(other.target) for other in waiting)
        say(rollout, f"may go on, and waits for the rest of its release: {names}")
        return
    for each in (rollout, *others):
        told = reason if each is rollout else f"{each.reason}; with {rollout.target}: {reason}"
        _take_next_step(each, told, now, evidence if each is rollout else None)


def _has_passed(other: Rollout, rollout: Rollout) -> bool:
    is_beside = (other.phase, other.step_index) == (rollout.phase, rollout.step_index)
    return is_beside and other.step_passed_at is not None


def _take_next_step(
    rollout: Rollout, reason: str, now: datetime, evidence: dict[str, Any] | None
) -> None:
    following = rollout.step_index + 1
    if following < len(from_json(rollout.plan_document).steps):
        enter_step(rollout, following, reason, INTERLOCK, now)
    else:
        switch_stable(rollout, reason, INTERLOCK, now, evidence)


def _start_clock(rollout: Rollout, plan: PlanDocument, look: Look) -> bool:
    """Start the bake when every live instance acked; say who has not, and hold, otherwise."""
    if not look.roster.live:
        say(rollout, "no data-plane instance is live: nothing can be observed")
        return False
    if behind := look.roster.unacked(rollout.generation or 0):
        generation = in_words(rollout.generation or 0)
        say(rollout, f"waiting for generation {generation}: {_tell_behind(behind)}")
        return False
    now = look.now
    bake = plan.bake_of(rollout.step_index)
    rollout.step_started_at = rollout.step_started_at or now
    rollout.step_due_at, rollout.step_limit_at = now + bake, now + bake * plan.extend_max
    rollout.next_check_at = next_look(rollout, plan, now)
    rollout.save(update_fields=list(CLOCK_STOPPED))
    return True


def _tell_behind(behind: list[tuple[str, str]]) -> str:
    return "; ".join(f"instance {name} {why}" for name, why in behind)


def _checks_due(rollout: Rollout, plan: PlanDocument, look: Look) -> bool:
    """Say whether a check interval has passed, and set when the next one will have."""
    if rollout.next_check_at is not None and look.now < rollout.next_check_at:
        return False
    if not has_answers(rollout, look.asked):
        return False
    rollout.next_check_at = next_look(rollout, plan, look.now)
    rollout.save(update_fields=["next_check_at"])
    return True


def _rolled_back_by_trip(rollout: Rollout, now: datetime) -> bool:
    """Roll back when a data plane's breaker gave up on the target, and only on the target."""
    trip = trip_of_target(rollout, now)
    if trip is None:
        return False
    reason = f"the circuit breaker of {rollout.target} opened on instance {trip.instance}"
    roll_back(rollout, f"{reason}: {trip.reason}", INTERLOCK, now, {"trips": trip.count})
    return True


def _guard(rollout: Rollout, look: Look) -> None:
    """A paused rollout keeps its weight, and so its guardrails: only rolling back is left to do."""
    if _rolled_back_by_trip(rollout, look.now):
        return
    if rollout.step_index >= 0:
        _rolled_back_by_checks(rollout, from_json(rollout.plan_document), look)


def _rolled_back_by_checks(rollout: Rollout, plan: PlanDocument, look: Look) -> bool:
    """Roll back when a check fails, at the end of each interval; nothing else can come of it."""
    if not _checks_due(rollout, plan, look):
        return False
    decision, answers = _evaluate(rollout, plan, look)
    if decision.action is not Action.ROLL_BACK:
        return False
    roll_back(rollout, decision.reason, INTERLOCK, look.now, _evidence_of(answers))
    return True


def _finish_promoting(rollout: Rollout, look: Look) -> None:
    _finish(rollout, Phase.SUCCEEDED, f"{rollout.target} is stable", look)


def _finish_rolling_back(rollout: Rollout, look: Look) -> None:
    # The reason of the rollback stays: it is what people look for.
    _finish(rollout, Phase.ROLLED_BACK, rollout.reason, look)


def _finish(rollout: Rollout, phase: Phase, reason: str, look: Look) -> None:
    """End when every live instance serves the table; until then each tick looks again."""
    if not look.roster.unacked(rollout.generation or 0):
        move(rollout, phase, reason, INTERLOCK, look.now)


STEPS: dict[Phase, Step] = {
    Phase.PENDING: _start,
    Phase.PREPARING: _prepare,
    Phase.BAKING: _bake,
    Phase.PAUSED: _guard,
    Phase.PROMOTING: _finish_promoting,
    Phase.ROLLING_BACK: _finish_rolling_back,
}
