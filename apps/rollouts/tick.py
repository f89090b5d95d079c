"""The reconciler of rollouts: one bounded step for each live rollout that is due, then commit.

Level-triggered: a tick reads the row, does what its phase asks for, and leaves the rest to the next
one. Any worker may die at any instant; the transaction is undone and the next tick repeats it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet

from apps.lib.actors import INTERLOCK
from apps.lib.clock import database_now
from apps.lib.errors import Conflict
from apps.models.models import Deployment
from apps.models.services import deploy_version, release_split
from apps.models.states import DeploymentState
from apps.rollouts.analysis import WHOLE_BP, Question, answer
from apps.rollouts.decisions import Action, Decision, StepClock, decide_step
from apps.rollouts.evidence import (
    GRACE,
    LatencyReference,
    closed_intervals,
    find_reference,
    is_fresh,
    reference_requests,
)
from apps.rollouts.models import BreakerTripRecord, Evaluation, Rollout
from apps.rollouts.phases import enter_step, move, roll_back, switch_stable
from apps.rollouts.plans import PlanDocument, from_json
from apps.rollouts.publication import live_instances, pins_on, unacked
from apps.rollouts.states import LIVE_PHASES, Phase
from apps.rollouts.verdicts import CheckResult

log = logging.getLogger(__name__)

# Both versions tripping this close together is an incident of the servers, not of the canary.
SAME_INCIDENT = timedelta(seconds=30)
# A canary has less time for an answer than stable, so it trips first when the servers hang; by then
# stable's trip is known too. Meanwhile the breaker keeps all requests away from the canary.
TRIP_SETTLES_IN = timedelta(seconds=5)


# A pass needs data of this step that is no older than so many check intervals.
FRESH_INTERVALS = 5


def tick_rollouts() -> int:
    """Do one step on each live rollout that nobody else holds; return how many were looked at."""
    looked_at = 0
    for pk in Rollout.objects.filter(phase__in=LIVE_PHASES).values_list("pk", flat=True):
        try:
            looked_at += tick_one(pk)
        except Conflict as error:
            log.info("rollout.raced %s: %s", pk, error.message)
        except Exception:
            # One rollout's fault must not keep the others from their guardrails.
            log.exception("rollout.tick_failed %s", pk)
    return looked_at


@transaction.atomic
def tick_one(pk: UUID) -> bool:
    """Do one step on one rollout; False when it has ended or somebody else holds it."""
    rows = Rollout.objects.select_for_update(skip_locked=True, of=("self",))
    rollout = (
        rows.filter(pk=pk, phase__in=LIVE_PHASES)
        .select_related("model", "target__model", "baseline__model")
        .first()
    )
    if rollout is None:
        return False
    now = database_now()
    STEPS[Phase(rollout.phase)](rollout, now)
    return True


def say(rollout: Rollout, reason: str) -> None:
    """Tell on the page why nothing moves; no transition, so the revision stays."""
    if rollout.reason != reason:
        Rollout.objects.filter(pk=rollout.pk, revision=rollout.revision).update(reason=reason)


def _start(rollout: Rollout, now: datetime) -> None:
    deploy_version(version=rollout.target, actor=INTERLOCK, now=now)
    move(rollout, Phase.PREPARING, "loading and warming the target", INTERLOCK, now)


def _prepare(rollout: Rollout, now: datetime) -> None:
    deployments = list(Deployment.objects.filter(version=rollout.target))
    failed = [d for d in deployments if d.state == DeploymentState.FAILED]
    if failed:
        _fail(rollout, f"{rollout.target} could not be served: {failed[0].reason}", now)
    elif not any(d.state == DeploymentState.READY for d in deployments):
        told = deployments[0].reason if deployments else ""
        state = deployments[0].state if deployments else "not placed"
        say(rollout, f"the target is {state}{': ' + told if told else ''}")
    elif rollout.kind == Rollout.Kind.CANARY:
        enter_step(rollout, 0, "the target is ready", INTERLOCK, now)
    else:
        why = {
            Rollout.Kind.FIRST: "the model's first version: nothing to compare with",
            Rollout.Kind.ROLLBACK: "instant rollback, without steps",
        }[Rollout.Kind(rollout.kind)]
        switch_stable(rollout, why, INTERLOCK, now, None)


def _fail(rollout: Rollout, reason: str, now: datetime) -> None:
    release_split(owner_id=rollout.pk)
    move(rollout, Phase.FAILED, reason, INTERLOCK, now)


def _bake(rollout: Rollout, now: datetime) -> None:
    """The rules in their order: trips, pins, acks, clock, checks, decision."""
    if _rolled_back_by_trip(rollout, now):
        return
    plan = from_json(rollout.plan_document)
    if pins := pins_on(rollout.model.name, now):
        _hold_pinned(rollout, plan, pins, now)
        return
    if rollout.step_due_at is None and not _start_clock(rollout, plan, now):
        return
    if not _checks_due(rollout, plan, now):
        return
    decision, results = _evaluate(rollout, plan, now)
    evidence = {"checks": {result.check: result.evidence for result in results}}
    if decision.action is Action.ROLL_BACK:
        roll_back(rollout, decision.reason, INTERLOCK, now, evidence)
    elif decision.action is Action.PAUSE:
        move(rollout, Phase.PAUSED, decision.reason, INTERLOCK, now, evidence=evidence)
    elif decision.action is Action.ADVANCE:
        _advance(rollout, plan, decision.reason, now, evidence)
    else:
        say(rollout, decision.reason)


def _hold_pinned(rollout: Rollout, plan: PlanDocument, pins: list[str], now: datetime) -> None:
    """Hold while an instance sends the canary nothing; the step bakes anew once it does again.

    The other instances go on serving the canary, so its guardrails stay.
    """
    if rollout.step_due_at is not None:
        rollout.step_due_at = rollout.step_limit_at = None
        rollout.save(update_fields=["step_due_at", "step_limit_at"])
    if rollout.step_started_at is None or not _rolled_back_by_checks(rollout, plan, now):
        say(rollout, f"held, as the split has no effect everywhere: {'; '.join(pins)}")


def _advance(
    rollout: Rollout, plan: PlanDocument, reason: str, now: datetime, evidence: dict[str, Any]
) -> None:
    following = rollout.step_index + 1
    if following < len(plan.steps):
        enter_step(rollout, following, reason, INTERLOCK, now)
    else:
        switch_stable(rollout, reason, INTERLOCK, now, evidence)


def _start_clock(rollout: Rollout, plan: PlanDocument, now: datetime) -> bool:
    """Start the bake when every live instance acked; say who has not, and hold, otherwise."""
    if not live_instances(now).exists():
        say(rollout, "no data-plane instance is live: nothing can be observed")
        return False
    behind = unacked(rollout.generation or 0, now)
    if behind:
        told = "; ".join(f"instance {name} {why}" for name, why in behind)
        say(rollout, f"waiting for generation {rollout.generation}: {told}")
        return False
    bake = plan.bake_of(rollout.step_index)
    _set_clock(rollout, plan, now, now + bake, now + bake * plan.extend_max)
    return True


def _set_clock(
    rollout: Rollout, plan: PlanDocument, now: datetime, due_at: datetime, limit_at: datetime
) -> None:
    rollout.step_started_at = rollout.step_started_at or now
    rollout.step_due_at, rollout.step_limit_at = due_at, limit_at
    rollout.next_check_at = now + timedelta(seconds=plan.interval_s)
    rollout.save(update_fields=["step_started_at", "step_due_at", "step_limit_at", "next_check_at"])


def _checks_due(rollout: Rollout, plan: PlanDocument, now: datetime) -> bool:
    """Say whether a check interval has passed, and set when the next one will have."""
    if rollout.next_check_at is not None and now < rollout.next_check_at:
        return False
    rollout.next_check_at = now + timedelta(seconds=plan.interval_s)
    rollout.save(update_fields=["next_check_at"])
    return True


def _evaluate(
    rollout: Rollout, plan: PlanDocument, now: datetime
) -> tuple[Decision, list[CheckResult]]:
    """Answer the step's checks, write them to the decision log, and decide."""
    intervals = closed_intervals(rollout, plan.interval_s, now)
    question = Question(
        plan=plan,
        step_index=rollout.step_index,
        intervals=intervals,
        reference=_reference(rollout, plan, now),
        reference_requests=reference_requests(rollout, now),
        is_fresh=is_fresh(
            intervals,
            rollout.step_index,
            needs_control=plan.steps[rollout.step_index].weight_bp < WHOLE_BP,
            since=now - GRACE - FRESH_INTERVALS * timedelta(seconds=plan.interval_s),
        ),
    )
    results = answer(question)
    Evaluation.objects.bulk_create(
        Evaluation(
            rollout=rollout,
            step_index=rollout.step_index,
            check_name=result.check,
            verdict=result.verdict.value,
            reason=result.reason,
            evidence=result.evidence,
            at=now,
        )
        for result in results
    )
    decision = decide_step(
        results,
        clock=StepClock(rollout.step_due_at or now, rollout.step_limit_at or now),
        now=now,
        requests=sum(interval.canary.requests for interval in question.this_step),
        requests_min=plan.steps[rollout.step_index].requests_min,
    )
    return decision, results


def _reference(rollout: Rollout, plan: PlanDocument, now: datetime) -> LatencyReference | None:
    """Return stable's frozen quantiles; freeze them at the first tick that has enough of them."""
    stored = rollout.latency_reference
    if stored:
        frozen_at = datetime.fromisoformat(stored["frozen_at"])
        return LatencyReference(stored["p95"], stored["p99"], stored["n"], frozen_at)
    found = find_reference(
        rollout,
        requests_min=plan.reference_requests_min,
        slack_us=plan.latency_slack_us,
        now=now,
    )
    if found is not None:
        rollout.latency_reference = {
            "p95": found.p95,
            "p99": found.p99,
            "n": found.n,
            "frozen_at": found.frozen_at.isoformat(),
        }
        rollout.save(update_fields=["latency_reference"])
    return found


def _rolled_back_by_trip(rollout: Rollout, now: datetime) -> bool:
    """Roll back when a data plane's breaker gave up on the target, and only on the target."""
    first = rollout.step_generations[0] if rollout.step_generations else 0
    trips = BreakerTripRecord.objects.filter(
        model_name=rollout.model.name, generation__gte=first, last_at__gte=rollout.started_at
    )
    settled = trips.filter(
        version_number=str(rollout.target.number), first_at__lte=now - TRIP_SETTLES_IN
    )
    for trip in settled.order_by("-last_at"):
        if not _stable_tripped_too(rollout, trips, trip):
            reason = f"the circuit breaker of {rollout.target} opened on instance {trip.instance}"
            roll_back(rollout, f"{reason}: {trip.reason}", INTERLOCK, now, {"trips": trip.count})
            return True
    return False


def _stable_tripped_too(
    rollout: Rollout, trips: QuerySet[BreakerTripRecord], trip: BreakerTripRecord
) -> bool:
    if rollout.baseline is None:
        return False
    near = (trip.last_at - SAME_INCIDENT, trip.last_at + SAME_INCIDENT)
    stable = trips.filter(version_number=str(rollout.baseline.number))
    return stable.filter(last_at__range=near).exists()


def _guard(rollout: Rollout, now: datetime) -> None:
    """A paused rollout keeps its weight, and so its guardrails: only rolling back is left to do."""
    if _rolled_back_by_trip(rollout, now):
        return
    if rollout.step_index >= 0:
        _rolled_back_by_checks(rollout, from_json(rollout.plan_document), now)


def _rolled_back_by_checks(rollout: Rollout, plan: PlanDocument, now: datetime) -> bool:
    """Roll back when a check fails, at the end of each interval; nothing else can come of it."""
    if not _checks_due(rollout, plan, now):
        return False
    decision, results = _evaluate(rollout, plan, now)
    if decision.action is not Action.ROLL_BACK:
        return False
    evidence = {"checks": {result.check: result.evidence for result in results}}
    roll_back(rollout, decision.reason, INTERLOCK, now, evidence)
    return True


def _finish_promoting(rollout: Rollout, now: datetime) -> None:
    _finish(rollout, Phase.SUCCEEDED, f"{rollout.target} is stable", now)


def _finish_rolling_back(rollout: Rollout, now: datetime) -> None:
    # The reason of the rollback stays: it is what people look for.
    _finish(rollout, Phase.ROLLED_BACK, rollout.reason, now)


def _finish(rollout: Rollout, phase: Phase, reason: str, now: datetime) -> None:
    """End when every live instance serves the table; until then each tick looks again."""
    if not unacked(rollout.generation or 0, now):
        move(rollout, phase, reason, INTERLOCK, now)


STEPS: dict[Phase, Callable[[Rollout, datetime], None]] = {
    Phase.PENDING: _start,
    Phase.PREPARING: _prepare,
    Phase.BAKING: _bake,
    Phase.PAUSED: _guard,
    Phase.PROMOTING: _finish_promoting,
    Phase.ROLLING_BACK: _finish_rolling_back,
}
