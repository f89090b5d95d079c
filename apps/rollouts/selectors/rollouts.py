"""The state of a rollout: steps, clock, gate, timeline and decision log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.contrib.auth.models import User
from django.core.paginator import Page, Paginator
from django.db.models import Case, Max, Q, QuerySet, When

from apps.models.access import RANK, has_role
from apps.models.models import LiveSplit, RegisteredModel, Role
from apps.rollouts.fleet_status import unacked
from apps.rollouts.gates import gate_role
from apps.rollouts.models import Evaluation, Plan, Rollout, RolloutEvent
from apps.rollouts.overrides import holding_freeze
from apps.rollouts.plans import PlanDocument, document_of, from_json
from apps.rollouts.states import LIVE_PHASES, Phase

LOG_PAGE = 15
CHART_SPAN_LIVE = timedelta(minutes=30)
CHART_SPAN_ENDED = timedelta(hours=6)
EVALUATIONS_CHARTED_MAX = 2_000
NAMED_MAX = 5


@dataclass(frozen=True)
class StepView:
    """A step for the page; `state` is done, now, ended (the rollout ended here) or next."""

    number: int
    weight_bp: int
    bake_s: float
    requests_min: int
    checks: tuple[str, ...]
    state: str = "next"
    shadow_bp: int = 0
    # The role that may open the gate; empty without a gate for a person.
    gate_role: str = ""
    is_final_bake: bool = False


@dataclass(frozen=True)
class Clock:
    """The bake clock of a live rollout.

    `waiting` are the instances that have not applied its table, with reasons. `data_limit_at` is
    the limit of a step that lacks only data, if that is later than `limit_at`.
    """

    started_at: datetime | None
    due_at: datetime | None
    limit_at: datetime | None
    is_extended: bool
    waiting: list[tuple[str, str]]
    data_limit_at: datetime | None = None


def steps_of_plan(plan: PlanDocument, at: int = -1, state: str = "now") -> list[StepView]:
    """Return the steps with scaled times; step `at` has `state`, earlier ones are done."""
    return [
        StepView(
            number=index + 1,
            weight_bp=step.weight_bp,
            bake_s=plan.bake_of(index).total_seconds(),
            requests_min=step.requests_min,
            checks=tuple(check.label for check in step.check_documents),
            shadow_bp=step.shadow_bp,
            gate_role=step.gate_role if step.gate == "person" else "",
            is_final_bake=step.is_final_bake,
            state="done" if index < at else state if index == at else "next",
        )
        for index, step in enumerate(plan.steps)
    ]


def steps_of(rollout: Rollout) -> list[StepView]:
    """Return the steps of `rollout`; none for a first version or a rollback."""
    if not rollout.plan_document.get("steps"):
        return []
    plan = from_json(rollout.plan_document)
    if rollout.phase in {Phase.SUCCEEDED, Phase.PROMOTING}:
        return steps_of_plan(plan, at=len(plan.steps))
    state = "now" if rollout.is_live and rollout.phase != Phase.ROLLING_BACK else "ended"
    return steps_of_plan(plan, at=rollout.step_index, state=state)


def steps_of_saved(plan: Plan) -> list[StepView]:
    """Return the steps of a rollout by the plan, with holdback and final bake.

    `steps` should be prefetched.
    """
    return steps_of_plan(document_of(plan).as_followed())


def clock_of(rollout: Rollout, now: datetime) -> Clock:
    """Return the clock; before it starts also the instances that it waits for."""
    is_waiting = (
        rollout.is_live and rollout.step_started_at is None and rollout.generation is not None
    )
    due_at = rollout.step_due_at
    return Clock(
        started_at=rollout.step_started_at,
        due_at=due_at,
        limit_at=rollout.step_limit_at,
        is_extended=due_at is not None and now >= due_at,
        waiting=unacked(rollout.generation, now) if is_waiting and rollout.generation else [],
        data_limit_at=_data_limit(rollout),
    )


def _data_limit(rollout: Rollout) -> datetime | None:
    """Return the limit of a step that lacks data; None if it is not later than `limit_at`."""
    due_at, limit_at = rollout.step_due_at, rollout.step_limit_at
    if due_at is None or limit_at is None or not rollout.plan_document:
        return None
    plan = from_json(rollout.plan_document)
    began_at = due_at - plan.bake_of(rollout.step_index)
    data_limit_at = began_at + timedelta(seconds=plan.wait_max_s)
    return data_limit_at if data_limit_at > limit_at else None


def find_rollouts() -> QuerySet[Rollout]:
    """Return all rollouts: live ones first, then the newest."""
    live_first = Case(When(phase__in=LIVE_PHASES, then=0), default=1)
    return Rollout.objects.select_related("model", "target", "baseline", "plan").order_by(
        live_first, "-started_at"
    )


def rollouts_of(model: RegisteredModel) -> QuerySet[Rollout]:
    return find_rollouts().filter(model=model)


@dataclass(frozen=True)
class GateView:
    """The gate of the current step for one person."""

    role: Role
    approved_by: str
    may_open: bool
    # The person started the rollout and therefore may not open it.
    is_starter: bool
    # The person may override it, with a reason.
    may_override: bool
    # Some people who may open it.
    holders: list[str]


def gate_of(rollout: Rollout, user: User) -> GateView | None:
    """Return the gate of the current step of a live rollout; None without one."""
    role = gate_role(rollout) if rollout.phase in {Phase.BAKING, Phase.PAUSED} else None
    if role is None:
        return None
    is_open = rollout.approved_step == rollout.step_index
    is_starter = user.get_username() == rollout.started_by
    return GateView(
        role=role,
        approved_by=rollout.approved_by if is_open else "",
        may_open=not is_starter and has_role(user, rollout.model, role),
        is_starter=is_starter,
        may_override=has_role(user, rollout.model, Role.OPERATOR),
        holders=[] if is_open else holders_of(role, rollout.model, rollout.started_by),
    )


def holders_of(role: Role, model: RegisteredModel, excluding: str = "") -> list[str]:
    """Return the names of up to NAMED_MAX people with at least `role` on `model`."""
    enough = [each for each in Role if RANK[each] >= RANK[role]]
    scope = Q(model_roles__model=None) | Q(model_roles__model=model)
    held = Q(model_roles__role__in=enough) & scope
    people = User.objects.filter(Q(is_superuser=True) | held, is_active=True)
    people = people.exclude(username=excluding)
    names = people.order_by("username").values_list("username", flat=True).distinct()
    return list(names[:NAMED_MAX])


def members_of(rollout: Rollout) -> list[Rollout]:
    """Return the other rollouts of the same release, ordered by model name."""
    if rollout.release_id is None:
        return []
    rows = Rollout.objects.filter(release=rollout.release_id).exclude(pk=rollout.pk)
    return list(rows.select_related("model", "target", "baseline").order_by("model__name"))


def timeline(rollout: Rollout) -> list[RolloutEvent]:
    """Return the events, newest first."""
    return list(rollout.events.order_by("-id"))


def decision_log(rollout: Rollout, page: str | None) -> Page[Evaluation]:
    """Return a page of evaluations, newest first; an invalid page becomes the nearest one."""
    return Paginator(rollout.evaluations.order_by("-id"), LOG_PAGE).get_page(page)


def chart_span(rollout: Rollout, now: datetime) -> tuple[datetime, datetime]:
    """Return start and end of the charts, with one minute before the rollout."""
    until = rollout.ended_at + timedelta(seconds=10) if rollout.ended_at else now
    span = CHART_SPAN_ENDED if rollout.ended_at else CHART_SPAN_LIVE
    return max(rollout.started_at - timedelta(minutes=1), until - span), until


def charted_evaluations(
    rollout: Rollout, since: datetime, until: datetime, checks: tuple[str, ...]
) -> list[Evaluation]:
    """Return the evaluations of `checks` in that time, oldest first; at most the newest 2,000."""
    rows = rollout.evaluations.filter(at__gte=since, at__lte=until, check_name__in=checks)
    newest = rows.order_by("-id")[:EVALUATIONS_CHARTED_MAX]
    return list(newest)[::-1]


def state_stamp(rollout: Rollout, now: datetime) -> tuple[object, ...]:
    """Return values that change whenever the state of `rollout` changes, apart from ages."""
    clock = clock_of(rollout, now)
    freeze = holding_freeze(rollout, now)
    return (
        # After the end: whether the abort button can still roll back.
        rollout.model.stable_id,
        rollout.is_live or LiveSplit.objects.filter(model=rollout.model_id).exists(),
        rollout.lacks_reason,
        (freeze.window.pk, freeze.until) if freeze else None,
        *((member.phase, member.revision) for member in members_of(rollout)),
        rollout.revision,
        rollout.phase,
        rollout.reason,
        rollout.step_started_at,
        rollout.step_due_at,
        clock.waiting,
        clock.is_extended,
        *rollout.evaluations.aggregate(Max("id")).values(),
        *rollout.events.aggregate(Max("id")).values(),
    )
