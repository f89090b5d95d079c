"""What one look at a rollout does, by its phase: the rules in their order.

A move that changes what serves is put off where many rollouts are looked at together, so that one
table is published for all of them (`apps.rollouts.tick`). Undone with its transaction, a look is
repeated by the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from apps.lib.actors import INTERLOCK
from apps.models.models import Deployment
from apps.models.services import deploy_version, release_split
from apps.models.states import DeploymentState
from apps.rollouts.breaker_trips import trip_of_target
from apps.rollouts.decisions import Action, Decision, JudgedCheck
from apps.rollouts.evaluation import evaluate, next_evaluation_at
from apps.rollouts.fleet_status import Roster, why_ahead
from apps.rollouts.limits import waits_for_its_turn
from apps.rollouts.metric_providers import ServiceObservations, has_observations
from apps.rollouts.models import Rollout
from apps.rollouts.overrides import holding_freeze
from apps.rollouts.phases import (
    CLOCK_STOPPED,
    companions,
    enter_step,
    move,
    roll_back,
    switch_stable,
)
from apps.rollouts.plans import PlanDocument, from_json
from apps.rollouts.states import Phase
from contract.generations import in_words

# What changes what serves: of a rollout whose row is held, at an instant.
Make = Callable[[Rollout, datetime], None]


@dataclass(frozen=True)
class Move:
    """A move that was decided on at `revision` and is still to be made; going back is urgent."""

    rollout_id: UUID
    revision: int
    make: Make
    is_urgent: bool


@dataclass(frozen=True)
class Look:
    """What one look at a rollout goes by, besides its row.

    `asked` is what services outside answered for it, if they were asked. Moves are put off into
    `moves`, or made at once where that is None.
    """

    now: datetime
    roster: Roster
    asked: ServiceObservations | None = None
    moves: list[Move] | None = None

    def make(self, rollout: Rollout, make: Make, *, is_urgent: bool = False) -> None:
        """Make a move, or put it off."""
        if self.moves is None:
            make(rollout, self.now)
            return
        if rollout.next_check_at is not None:
            # Whoever dies before the move is made leaves the rollout to be judged again at once.
            rollout.next_check_at = self.now
            rollout.save(update_fields=["next_check_at"])
        self.moves.append(Move(rollout.pk, rollout.revision, make, is_urgent))


# What a rollout does in a phase.
Step = Callable[[Rollout, Look], None]
# What goes on only when every instance serves the table anyway; its reason stays.
LEAVING = frozenset({Phase.PROMOTING, Phase.ROLLING_BACK})


def take_step(rollout: Rollout, look: Look) -> None:
    """Do what the rollout's phase asks for. The caller holds the row."""
    if look.roster.ahead and rollout.phase not in LEAVING:
        # Nothing is judged by what was measured under tables that this database knows nothing of.
        first = look.roster.ahead[0]
        say(rollout, f"held: instance {first.name} {why_ahead(first, look.roster.epoch)}")
    else:
        STEPS[Phase(rollout.phase)](rollout, look)


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
        _put_forward(rollout, "the target is ready", look, None)
    else:
        why = WITHOUT_STEPS[Rollout.Kind(rollout.kind)]
        look.make(rollout, lambda held, at: switch_stable(held, why, INTERLOCK, at, None))


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
    if _rolled_back_by_trip(rollout, look):
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
        _take_back(rollout, decision.reason, look, evidence)
    elif decision.action is Action.PAUSE:
        move(rollout, Phase.PAUSED, decision.reason, INTERLOCK, look.now, evidence=evidence)
    elif decision.action is Action.ADVANCE:
        _let_pass(rollout, decision.reason, look, evidence)
    else:
        say(rollout, decision.reason)


def _evaluate(
    rollout: Rollout, plan: PlanDocument, look: Look
) -> tuple[Decision, list[JudgedCheck]]:
    return evaluate(rollout, plan, look.asked.observations if look.asked else {}, look.now)


def _evidence_of(answers: list[JudgedCheck]) -> dict[str, Any]:
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
        rollout.next_check_at = next_evaluation_at(rollout, plan, look.now)
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
        _put_forward(rollout, reason, look, evidence)


def _held_by_freeze(rollout: Rollout, now: datetime) -> bool:
    """Say so, and hold, while a freeze window is open that nobody overrode; going back may."""
    freeze = holding_freeze(rollout, now)
    if freeze is None:
        return False
    say(rollout, f"held by a freeze until {freeze.words}: {freeze.reason}")
    return True


def _put_forward(
    rollout: Rollout, reason: str, look: Look, evidence: dict[str, Any] | None
) -> None:
    look.make(rollout, lambda held, at: _advance(held, reason, at, evidence))


def _take_back(rollout: Rollout, reason: str, look: Look, evidence: dict[str, Any]) -> None:
    look.make(
        rollout,
        lambda held, at: roll_back(held, reason, INTERLOCK, at, evidence),
        is_urgent=True,
    )


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
    if words := why_waiting(rollout, look.roster):
        say(rollout, words)
        return False
    now = look.now
    bake = plan.bake_of(rollout.step_index)
    rollout.step_started_at = rollout.step_started_at or now
    rollout.step_due_at, rollout.step_limit_at = now + bake, now + bake * plan.extend_max
    rollout.next_check_at = next_evaluation_at(rollout, plan, now)
    rollout.save(update_fields=list(CLOCK_STOPPED))
    return True


def why_waiting(rollout: Rollout, roster: Roster) -> str:
    """Return in words who does not yet serve the step, so that its clock stands; or nothing."""
    if not roster.live:
        return "no data-plane instance is live: nothing can be observed"
    generation = rollout.generation or 0
    if behind := roster.unacked(generation):
        return f"waiting for generation {in_words(generation)}: {_tell_behind(behind)}"
    return ""


def _tell_behind(behind: list[tuple[str, str]]) -> str:
    return "; ".join(f"instance {name} {why}" for name, why in behind)


def _checks_due(rollout: Rollout, plan: PlanDocument, look: Look) -> bool:
    """Say whether a check interval has passed, and set when the next one will have."""
    if rollout.next_check_at is not None and look.now < rollout.next_check_at:
        return False
    if not has_observations(rollout, look.asked):
        return False
    rollout.next_check_at = next_evaluation_at(rollout, plan, look.now)
    rollout.save(update_fields=["next_check_at"])
    return True


def _rolled_back_by_trip(rollout: Rollout, look: Look) -> bool:
    """Roll back when a data plane's breaker gave up on the target, and only on the target."""
    trip = trip_of_target(rollout, look.now)
    if trip is None:
        return False
    reason = f"the circuit breaker of {rollout.target} opened on instance {trip.instance}"
    _take_back(rollout, f"{reason}: {trip.reason}", look, {"trips": trip.count})
    return True


def _guard(rollout: Rollout, look: Look) -> None:
    """A paused rollout keeps its weight, and so its guardrails: only rolling back is left to do."""
    if _rolled_back_by_trip(rollout, look):
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
    _take_back(rollout, decision.reason, look, _evidence_of(answers))
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
