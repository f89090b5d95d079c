"""How a rollout stands: its steps, its clock, its checks, its timeline and its decision log."""

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
    """A step as it is drawn; `state` is done, now, ended (the rollout stopped here) or next."""

    number: int
    weight_bp: int
    bake_s: float
    requests_min: int
    checks: tuple[str, ...]
    state: str = "next"
    shadow_bp: int = 0
    # Who may open the step's gate; empty when it opens by itself.
    gate_role: str = ""
    is_final_bake: bool = False


@dataclass(frozen=True)
class Clock:
    """Where the time of a live rollout goes. `waiting` names who has not applied its table.

    `data_limit_at` is how long it goes on where nothing but data is lacking, if that is longer.
    """

    started_at: datetime | None
    due_at: datetime | None
    limit_at: datetime | None
    is_extended: bool
    waiting: list[tuple[str, str]]
    data_limit_at: datetime | None = None


def steps_of_plan(plan: PlanDocument, at: int = -1, state: str = "now") -> list[StepView]:
    """Return the steps with scaled times; step `at` gets `state`, those before it are done."""
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
    """Return the steps that `rollout` follows; none for a first version or a rollback."""
    if not rollout.plan_document.get("steps"):
        return []
    plan = from_json(rollout.plan_document)
    if rollout.phase in {Phase.SUCCEEDED, Phase.PROMOTING}:
        return steps_of_plan(plan, at=len(plan.steps))
    state = "now" if rollout.is_live and rollout.phase != Phase.ROLLING_BACK else "ended"
    return steps_of_plan(plan, at=rollout.step_index, state=state)


def steps_of_saved(plan: Plan) -> list[StepView]:
    """Return the steps that a rollout by the plan goes through: held back, with the final bake.

    Expects `steps` to be prefetched.
    """
    return steps_of_plan(document_of(plan).as_followed())


def clock_of(rollout: Rollout, now: datetime) -> Clock:
    """Return the step's clock; until it runs, the instances that hold it, with the reason."""
    holds = rollout.is_live and rollout.step_started_at is None and rollout.generation is not None
    due_at = rollout.step_due_at
    return Clock(
        started_at=rollout.step_started_at,
        due_at=due_at,
        limit_at=rollout.step_limit_at,
        is_extended=due_at is not None and now >= due_at,
        waiting=unacked(rollout.generation, now) if holds and rollout.generation else [],
        data_limit_at=_data_limit(rollout),
    )


def _data_limit(rollout: Rollout) -> datetime | None:
    """Return until when a step waits for data, None where that is no longer than its limit."""
    due_at, limit_at = rollout.step_due_at, rollout.step_limit_at
    if due_at is None or limit_at is None or not rollout.plan_document:
        return None
    plan = from_json(rollout.plan_document)
    began_at = due_at - plan.bake_of(rollout.step_index)
    data_limit_at = began_at + timedelta(seconds=plan.wait_max_s)
    return data_limit_at if data_limit_at > limit_at else None


def find_rollouts() -> QuerySet[Rollout]:
    """Rollouts, the live ones first, then the newest."""
    live_first = Case(When(phase__in=LIVE_PHASES, then=0), default=1)
    return Rollout.objects.select_related("model", "target", "baseline", "plan").order_by(
        live_first, "-started_at"
    )


def rollouts_of(model: RegisteredModel) -> QuerySet[Rollout]:
    return find_rollouts().filter(model=model)


@dataclass(frozen=True)
class GateView:
    """The gate of the present step: who may open it, whether the looking person does, who did."""

    role: Role
    approved_by: str
    may_open: bool
    # Who started it does not open it, whatever role that is.
    is_starter: bool
    # Or goes past it, saying why.
    may_override: bool
    # Some of those who have the role and did not start it.
    holders: list[str]


def gate_of(rollout: Rollout, user: User) -> GateView | None:
    """Return the gate that a live rollout's present step has; None when it opens by itself."""
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


def holders_of(role: Role, model: RegisteredModel, but_not: str = "") -> list[str]:
    """Return the names of some people with `role` or a higher one on `model`."""
    enough = [each for each in Role if RANK[each] >= RANK[role]]
    scope = Q(model_roles__model=None) | Q(model_roles__model=model)
    held = Q(model_roles__role__in=enough) & scope
    people = User.objects.filter(Q(is_superuser=True) | held, is_active=True)
    people = people.exclude(username=but_not)
    names = people.order_by("username").values_list("username", flat=True).distinct()
    return list(names[:NAMED_MAX])


def members_of(rollout: Rollout) -> list[Rollout]:
    """Return the other rollouts of the same release, in the order of their models."""
    if rollout.release_id is None:
        return []
    rows = Rollout.objects.filter(release=rollout.release_id).exclude(pk=rollout.pk)
    return list(rows.select_related("model", "target", "baseline").order_by("model__name"))


def timeline(rollout: Rollout) -> list[RolloutEvent]:
    """Return what happened, newest first."""
    return list(rollout.events.order_by("-id"))


def decision_log(rollout: Rollout, page: str | None) -> Page[Evaluation]:
    """Return a page of the answers, newest first; a page that is none becomes the nearest one."""
    return Paginator(rollout.evaluations.order_by("-id"), LOG_PAGE).get_page(page)


def chart_span(rollout: Rollout, now: datetime) -> tuple[datetime, datetime]:
    """Return from when to when a rollout is drawn, with a minute of what was before."""
    until = rollout.ended_at + timedelta(seconds=10) if rollout.ended_at else now
    span = CHART_SPAN_ENDED if rollout.ended_at else CHART_SPAN_LIVE
    return max(rollout.started_at - timedelta(minutes=1), until - span), until


def charted_evaluations(
    rollout: Rollout, since: datetime, until: datetime, checks: tuple[str, ...]
) -> list[Evaluation]:
    """Return the answers of `checks` in that time, oldest first, the newest ones when too many."""
    answers = rollout.evaluations.filter(at__gte=since, at__lte=until, check_name__in=checks)
    newest = answers.order_by("-id")[:EVALUATIONS_CHARTED_MAX]
    return list(newest)[::-1]


def state_stamp(rollout: Rollout, now: datetime) -> tuple[object, ...]:
    """Return what changes whenever the state of `rollout` does, except for the passing of time."""
    clock = clock_of(rollout, now)
    freeze = holding_freeze(rollout, now)
    return (
        # After it has ended: whether the red button still leads back.
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
