"""One evaluation of a rollout, by its phase: the rules in their order.

A tick evaluates many rollouts and defers moves that change the routing table, so that one table is
published for all of them (`apps.rollouts.tick`). If its transaction is rolled back, the next
evaluation repeats everything.
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
from apps.rollouts.fleet_status import Roster, ahead_reason
from apps.rollouts.limits import queue_reason
from apps.rollouts.metric_providers import ServiceObservations, has_observations
from apps.rollouts.models import Rollout
from apps.rollouts.overrides import holding_freeze
from apps.rollouts.phases import (
    CLOCK_STOPPED,
    companions,
    enter_step,
    roll_back,
    set_phase,
    switch_stable,
)
from apps.rollouts.plans import PlanDocument, from_json
from apps.rollouts.reasons import HEADLINE_MAX, Reason, ReasonLike, reason_of
from apps.rollouts.states import Phase
from contract.generations import in_words

# Applies a move to a rollout whose row is locked, at a time.
Apply = Callable[[Rollout, datetime], None]


@dataclass(frozen=True)
class Move:
    """A move that was decided at `revision` and is not applied yet; rollbacks are urgent."""

    rollout_id: UUID
    revision: int
    apply: Apply
    is_urgent: bool


@dataclass(frozen=True)
class StepContext:
    """The input of one evaluation besides the row.

    `external` are the answers of external services, if they were queried. Moves are deferred into
    `moves`, or applied at once if that is None.
    """

    now: datetime
    roster: Roster
    external: ServiceObservations | None = None
    moves: list[Move] | None = None

    def apply_or_defer(self, rollout: Rollout, apply: Apply, *, is_urgent: bool = False) -> None:
        if self.moves is None:
            apply(rollout, self.now)
            return
        if rollout.next_check_at is not None:
            # If the worker dies before it applies the move, the checks are due again at once.
            rollout.next_check_at = self.now
            rollout.save(update_fields=["next_check_at"])
        self.moves.append(Move(rollout.pk, rollout.revision, apply, is_urgent))


# The evaluation of a rollout in one phase.
Step = Callable[[Rollout, StepContext], None]
# Phases that end when every instance serves the table; their reason stays.
LEAVING = frozenset({Phase.PROMOTING, Phase.ROLLING_BACK})


def take_step(rollout: Rollout, context: StepContext) -> None:
    """Evaluate the rollout by its phase. The caller has locked the row."""
    if context.roster.ahead and rollout.phase not in LEAVING:
        # Measurements under tables that this database does not know are not evaluated.
        first = context.roster.ahead[0]
        set_reason(
            rollout, f"held: instance {first.name} {ahead_reason(first, context.roster.epoch)}"
        )
    else:
        STEPS[Phase(rollout.phase)](rollout, context)


def set_reason(rollout: Rollout, reason: ReasonLike) -> None:
    """Store why nothing moves; no transition, so the revision stays."""
    text = reason_of(reason)
    if rollout.reason != text.detail:
        Rollout.objects.filter(pk=rollout.pk, revision=rollout.revision).update(
            reason=text.detail, headline=text.headline
        )


def _start(rollout: Rollout, context: StepContext) -> None:
    if reason := queue_reason(rollout):
        set_reason(rollout, reason)
        return
    deploy_version(version=rollout.target, actor=INTERLOCK, now=context.now)
    set_phase(rollout, Phase.PREPARING, "loading and warming the target", INTERLOCK, context.now)


def _prepare(rollout: Rollout, context: StepContext) -> None:
    now = context.now
    deployments = list(Deployment.objects.filter(version=rollout.target))
    failed = [d for d in deployments if d.state == DeploymentState.FAILED]
    if failed:
        _fail(rollout, f"{rollout.target} could not be loaded: {failed[0].reason}", now)
    elif not any(d.state == DeploymentState.READY for d in deployments):
        _clear_step_passed(rollout)
        detail = deployments[0].reason if deployments else ""
        state = deployments[0].state if deployments else "not deployed"
        set_reason(rollout, f"the target is {state}{': ' + detail if detail else ''}")
    elif _held_by_freeze(rollout, now):
        _clear_step_passed(rollout)
    elif rollout.kind == Rollout.Kind.CANARY:
        _propose_advance(rollout, "the target is ready", context, None)
    else:
        reason = WITHOUT_STEPS[Rollout.Kind(rollout.kind)]
        context.apply_or_defer(
            rollout, lambda locked, at: switch_stable(locked, reason, INTERLOCK, at, None)
        )


WITHOUT_STEPS = {
    Rollout.Kind.FIRST: "first version of the model: no control to compare with",
    Rollout.Kind.ROLLBACK: "instant rollback, without steps",
    Rollout.Kind.SWITCH: "its signature differs from stable, so they cannot share traffic",
}


def _fail(rollout: Rollout, reason: ReasonLike, now: datetime) -> None:
    release_split(owner_id=rollout.pk)
    set_phase(rollout, Phase.FAILED, reason, INTERLOCK, now)
    # The rollback of one of the others rolls back the rest of the release.
    for other in companions(rollout)[:1]:
        if other.phase != Phase.ROLLING_BACK:
            roll_back(other, f"with {rollout.target} of the same release: {reason}", INTERLOCK, now)


def _bake(rollout: Rollout, context: StepContext) -> None:
    """Apply the rules in their order: trips, pins, acks, clock, checks, decision."""
    if _rolled_back_by_trip(rollout, context):
        return
    plan = from_json(rollout.plan_document)
    if pins := context.roster.pins_on(rollout.model.name):
        _hold_pinned(rollout, plan, pins, context)
        return
    if rollout.step_due_at is None and not _start_clock(rollout, plan, context):
        _guard_while_held(rollout, plan, context)
        return
    if not _checks_due(rollout, plan, context):
        return
    decision, answers = _evaluate(rollout, plan, context)
    evidence = _evidence_of(answers)
    if decision.action is not Action.ADVANCE:
        _clear_step_passed(rollout)
    if decision.action is Action.ROLL_BACK:
        _propose_rollback(rollout, decision.why, context, evidence)
    elif decision.action is Action.PAUSE:
        set_phase(rollout, Phase.PAUSED, decision.why, INTERLOCK, context.now, evidence=evidence)
    elif decision.action is Action.ADVANCE:
        _pass_step(rollout, decision.why, context, evidence)
    else:
        set_reason(rollout, decision.why)


def _evaluate(
    rollout: Rollout, plan: PlanDocument, context: StepContext
) -> tuple[Decision, list[JudgedCheck]]:
    return evaluate(
        rollout, plan, context.external.observations if context.external else {}, context.now
    )


def _evidence_of(answers: list[JudgedCheck]) -> dict[str, Any]:
    return {"checks": {each.check.label: each.result.evidence for each in answers}}


def _hold_pinned(
    rollout: Rollout, plan: PlanDocument, pins: list[str], context: StepContext
) -> None:
    """Hold while an instance has the model pinned; then the bake time starts again."""
    _clear_step_passed(rollout)
    if rollout.step_due_at is not None:
        rollout.step_due_at = rollout.step_limit_at = None
        rollout.save(update_fields=["step_due_at", "step_limit_at"])
    if not _guard_while_held(rollout, plan, context):
        set_reason(rollout, f"held: the split has no effect on some instances: {'; '.join(pins)}")


def _guard_while_held(rollout: Rollout, plan: PlanDocument, context: StepContext) -> bool:
    """Run the checks while the clock is stopped: some instances serve the canary already."""
    if rollout.next_check_at is None:
        rollout.next_check_at = next_evaluation_at(rollout, plan, context.now)
        rollout.save(update_fields=["next_check_at"])
        return False
    return _rolled_back_by_checks(rollout, plan, context)


def _clear_step_passed(rollout: Rollout) -> None:
    """Make the rest of the release wait for this step again."""
    if rollout.step_passed_at is not None:
        rollout.step_passed_at = None
        rollout.save(update_fields=["step_passed_at"])


def _pass_step(
    rollout: Rollout, reason: ReasonLike, context: StepContext, evidence: dict[str, Any]
) -> None:
    """Pass a step whose checks and gate passed, unless an instance or a freeze holds it."""
    if behind := context.roster.unacked(rollout.generation or 0):
        set_reason(rollout, f"the step passed, but is held: {_format_behind(behind)}")
        _clear_step_passed(rollout)
    elif _held_by_freeze(rollout, context.now):
        _clear_step_passed(rollout)
    else:
        _propose_advance(rollout, reason, context, evidence)


def _held_by_freeze(rollout: Rollout, now: datetime) -> bool:
    """Return whether an open freeze holds the rollout, and store the reason."""
    freeze = holding_freeze(rollout, now)
    if freeze is None:
        return False
    set_reason(rollout, f"held by a freeze until {freeze.words}: {freeze.reason}")
    return True


def _propose_advance(
    rollout: Rollout, reason: ReasonLike, context: StepContext, evidence: dict[str, Any] | None
) -> None:
    context.apply_or_defer(rollout, lambda locked, at: _advance(locked, reason, at, evidence))


def _propose_rollback(
    rollout: Rollout, reason: ReasonLike, context: StepContext, evidence: dict[str, Any]
) -> None:
    context.apply_or_defer(
        rollout,
        lambda locked, at: roll_back(locked, reason, INTERLOCK, at, evidence),
        is_urgent=True,
    )


def _advance(
    rollout: Rollout, reason: ReasonLike, now: datetime, evidence: dict[str, Any] | None
) -> None:
    """Start the next step or make the target stable; all models of a release at once."""
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
        set_reason(rollout, f"the step passed; waiting for the rest of the release: {names}")
        return
    for each in (rollout, *others):
        text = reason if each is rollout else f"{each.reason}; with {rollout.target}: {reason}"
        _take_next_step(each, text, now, evidence if each is rollout else None)


def _has_passed(other: Rollout, rollout: Rollout) -> bool:
    is_at_same_step = (other.phase, other.step_index) == (rollout.phase, rollout.step_index)
    return is_at_same_step and other.step_passed_at is not None


def _take_next_step(
    rollout: Rollout, reason: ReasonLike, now: datetime, evidence: dict[str, Any] | None
) -> None:
    following = rollout.step_index + 1
    if following < len(from_json(rollout.plan_document).steps):
        enter_step(rollout, following, reason, INTERLOCK, now)
    else:
        switch_stable(rollout, reason, INTERLOCK, now, evidence)


def _start_clock(rollout: Rollout, plan: PlanDocument, context: StepContext) -> bool:
    """Start the bake clock if every live instance acked; otherwise store who has not."""
    if reason := waiting_reason(rollout, context.roster):
        set_reason(rollout, reason)
        return False
    now = context.now
    bake = plan.bake_of(rollout.step_index)
    rollout.step_started_at = rollout.step_started_at or now
    rollout.step_due_at, rollout.step_limit_at = now + bake, now + bake * plan.extend_max
    rollout.next_check_at = next_evaluation_at(rollout, plan, now)
    rollout.save(update_fields=list(CLOCK_STOPPED))
    return True


def waiting_reason(rollout: Rollout, roster: Roster) -> str:
    """Return which instances do not serve the step yet; empty when all do."""
    if not roster.live:
        return "no data-plane instance is live"
    generation = rollout.generation or 0
    if behind := roster.unacked(generation):
        return f"waiting for generation {in_words(generation)}: {_format_behind(behind)}"
    return ""


def _format_behind(behind: list[tuple[str, str]]) -> str:
    return "; ".join(f"instance {name} {reason}" for name, reason in behind)


def _checks_due(rollout: Rollout, plan: PlanDocument, context: StepContext) -> bool:
    """Return whether the checks are due, and if so schedule the next check interval."""
    if rollout.next_check_at is not None and context.now < rollout.next_check_at:
        return False
    if not has_observations(rollout, context.external):
        return False
    rollout.next_check_at = next_evaluation_at(rollout, plan, context.now)
    rollout.save(update_fields=["next_check_at"])
    return True


def _rolled_back_by_trip(rollout: Rollout, context: StepContext) -> bool:
    """Roll back when the breaker of a data plane opened on the target, and only on it."""
    trip = trip_of_target(rollout, context.now)
    if trip is None:
        return False
    reason = f"the circuit breaker of {rollout.target} opened on instance {trip.instance}"
    full = Reason(
        f"Rolled back: circuit breaker open on {trip.instance}"[:HEADLINE_MAX],
        f"{reason}: {trip.reason}",
    )
    _propose_rollback(rollout, full, context, {"trips": trip.count})
    return True


def _guard(rollout: Rollout, context: StepContext) -> None:
    """Run the guardrails of a paused rollout, which keeps its weight; it can only roll back."""
    if _rolled_back_by_trip(rollout, context):
        return
    if rollout.step_index >= 0:
        _rolled_back_by_checks(rollout, from_json(rollout.plan_document), context)


def _rolled_back_by_checks(rollout: Rollout, plan: PlanDocument, context: StepContext) -> bool:
    """Roll back when a check fails, at the end of each interval. Other decisions are ignored."""
    if not _checks_due(rollout, plan, context):
        return False
    decision, answers = _evaluate(rollout, plan, context)
    if decision.action is not Action.ROLL_BACK:
        return False
    _propose_rollback(rollout, decision.why, context, _evidence_of(answers))
    return True


def _finish_promoting(rollout: Rollout, context: StepContext) -> None:
    _finish(rollout, Phase.SUCCEEDED, f"{rollout.target} is stable", context)


def _finish_rolling_back(rollout: Rollout, context: StepContext) -> None:
    # The reason of the rollback stays: it is the one that people need.
    _finish(rollout, Phase.ROLLED_BACK, Reason(rollout.headline, rollout.reason), context)


def _finish(rollout: Rollout, phase: Phase, reason: ReasonLike, context: StepContext) -> None:
    """End the rollout when every live instance serves the table; otherwise try again next tick."""
    if not context.roster.unacked(rollout.generation or 0):
        set_phase(rollout, phase, reason, INTERLOCK, context.now)


STEPS: dict[Phase, Step] = {
    Phase.PENDING: _start,
    Phase.PREPARING: _prepare,
    Phase.BAKING: _bake,
    Phase.PAUSED: _guard,
    Phase.PROMOTING: _finish_promoting,
    Phase.ROLLING_BACK: _finish_rolling_back,
}
