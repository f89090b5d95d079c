"""Actions on a rollout. Each is a POST with the revision that the page showed.

An abort needs no revision: it is allowed in every phase.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any
from uuid import UUID

from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST
from django_htmx.http import reswap, retarget

from apps.lib.clock import database_now
from apps.lib.confirm import REASON_MAX, Question, ask
from apps.lib.errors import Invalid
from apps.lib.pages import PageRequest, attempt, go_back, go_to, page, stamp_of
from apps.models.access import actor_of, has_role, require_role
from apps.models.models import Role
from apps.rollouts import services
from apps.rollouts.forms import ActionForm
from apps.rollouts.models import Rollout
from apps.rollouts.overrides import HELD_PHASES
from apps.rollouts.selectors import rollouts as selectors
from apps.rollouts.states import Phase
from apps.rollouts.views import confirmations
from apps.rollouts.views.rollouts import load_rollout, state_context

Action = Callable[..., Rollout]
# A step can be skipped, and a rollout promoted, in these phases.
ON_STEP = {Phase.BAKING, Phase.PAUSED}


def _act(
    request: PageRequest,
    rollout: Rollout,
    action: Action,
    done: str,
    question: Callable[[], Question] | None = None,
    phases: Collection[Phase] = ON_STEP,
) -> HttpResponse:
    """Run `action` with the revision of the page; then render the state of the rollout.

    A `question` is asked first, unless the page is stale: then the action is refused. The caller
    has checked the role of the person.
    """
    form = ActionForm(request.POST)
    data = form.cleaned_data if form.is_valid() else {}
    # No question for an action that the service refuses anyway.
    is_fresh = data.get("revision") == rollout.revision and rollout.phase in phases
    if question is not None and is_fresh and (confirmation := ask(request, question())):
        return confirmation

    def act() -> str:
        if not data:
            raise Invalid("The request has no revision of the rollout. Reload the page.")
        overrides = request.POST.getlist("override")
        more: dict[str, Any] = {"overrides": overrides} if overrides else {}
        action(rollout=rollout, actor=actor_of(request), now=database_now(), **data, **more)
        return done

    error = attempt(request, act)
    if not request.htmx:
        return redirect("rollout", pk=rollout.pk)
    current = load_rollout(rollout.pk)
    context = {
        **state_context(request, current),
        "stamp": stamp_of(*selectors.state_stamp(current, database_now())),
    }
    status = error.status if error else 200
    response = render(request, "rollouts/_rollout.html", context, status=status)
    # A poll may have replaced the element that sent the form, so the target is set here.
    return reswap(retarget(response, "#live"), "outerHTML")


def _load_operated(request: PageRequest, pk: UUID) -> Rollout:
    rollout = load_rollout(pk)
    require_role(request.user, rollout.model, Role.OPERATOR)
    return rollout


@page
@require_POST
def pause(request: PageRequest, pk: UUID) -> HttpResponse:
    done = "Paused. The share stays, the clock stops, and checks may still roll back."
    return _act(request, _load_operated(request, pk), services.pause_rollout, done)


@page
@require_POST
def resume(request: PageRequest, pk: UUID) -> HttpResponse:
    done = "Resumed. The step starts its bake time again."
    return _act(request, _load_operated(request, pk), services.resume_rollout, done)


@page
@require_POST
def skip(request: PageRequest, pk: UUID) -> HttpResponse:
    rollout = _load_operated(request, pk)
    done = "Skipped. The next step begins."
    actor = actor_of(request)
    return _act(
        request,
        rollout,
        services.skip_step,
        done,
        lambda: confirmations.of_skip(rollout, actor, database_now()),
    )


@page
@require_POST
def approve(request: PageRequest, pk: UUID) -> HttpResponse:
    """Approve the step; the service checks the role of its gate and who started the rollout."""
    rollout = load_rollout(pk)
    if not has_role(request.user, rollout.model, Role.OPERATOR):
        require_role(request.user, rollout.model, services.gate_role(rollout) or Role.OPERATOR)
    done = "Approved. The step passes as soon as its checks pass."
    actor = actor_of(request)
    return _act(
        request,
        rollout,
        services.approve_step,
        done,
        lambda: confirmations.of_approve(rollout, actor),
        {Phase.BAKING},
    )


@page
@require_POST
def promote(request: PageRequest, pk: UUID) -> HttpResponse:
    rollout = _load_operated(request, pk)
    actor = actor_of(request)
    return _act(
        request,
        rollout,
        services.promote_now,
        "Promoted. The target is stable now.",
        lambda: confirmations.of_promote(rollout, actor, database_now()),
    )


@page
@require_POST
def override_freeze(request: PageRequest, pk: UUID) -> HttpResponse:
    rollout = _load_operated(request, pk)
    done = "Overridden. The rollout continues in this freeze."
    return _act(
        request,
        rollout,
        services.override_freeze,
        done,
        lambda: confirmations.of_freeze(rollout, database_now()),
        HELD_PHASES,
    )


@page
@require_POST
def abort(request: PageRequest, pk: UUID) -> HttpResponse:
    """Abort, or roll back a promoted rollout; at any revision."""
    rollout = _load_operated(request, pk)
    if confirmation := ask(request, confirmations.of_abort(rollout)):
        return confirmation
    rows = [rollout]

    def act() -> str:
        reason = request.POST.get("reason", "").strip()[:REASON_MAX]
        actor, now = actor_of(request), database_now()
        rows.append(services.abort_rollout(rollout=rollout, actor=actor, now=now, reason=reason))
        return f"Aborted. All traffic of {rollout.model.name} goes back to the previous version."

    attempt(request, act)
    return go_to(request, "rollout", pk=rows[-1].pk)


@page
@require_POST
def reason(request: PageRequest, pk: UUID) -> HttpResponse:
    """Store the reason of an abort."""
    rollout = _load_operated(request, pk)

    def act() -> str:
        text, actor = request.POST.get("reason", "")[:REASON_MAX], actor_of(request)
        services.record_abort_reason(rollout=rollout, actor=actor, now=database_now(), reason=text)
        return "The reason is saved."

    attempt(request, act)
    return go_back(request, "rollout-list")


@page
@require_POST
def retry(request: PageRequest, pk: UUID) -> HttpResponse:
    """Start a new rollout of the same version."""
    rollout = load_rollout(pk)
    require_role(request.user, rollout.model, Role.OPERATOR)
    started: list[Rollout] = []

    def again() -> str:
        overrides = request.POST.getlist("override")
        actor, now = actor_of(request), database_now()
        started.append(
            services.retry_rollout(rollout=rollout, actor=actor, now=now, overrides=overrides)
        )
        return f"A new rollout of version {rollout.target.number} is started."

    attempt(request, again)
    return go_to(request, "rollout", pk=started[0].pk if started else pk)
