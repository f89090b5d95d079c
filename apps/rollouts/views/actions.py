"""What a person may do to a rollout. Each is a POST with the revision that the person saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from apps.lib.clock import database_now
from apps.lib.errors import Invalid
from apps.lib.pages import PageRequest, attempt, go_to, page, stamp_of
from apps.models.access import actor_of, require_role
from apps.models.models import Role
from apps.rollouts import services
from apps.rollouts.forms import ActionForm
from apps.rollouts.models import Rollout
from apps.rollouts.selectors import rollouts as selectors
from apps.rollouts.views.rollouts import load_rollout, state_context

Action = Callable[..., Rollout]


def _act(request: PageRequest, found: Rollout, action: Action, done: str) -> HttpResponse:
    """Do `action` with the revision that the person saw; then show how the rollout stands.

    The caller has made sure that the person may.
    """

    def act() -> str:
        form = ActionForm(request.POST)
        if not form.is_valid():
            raise Invalid("The page did not say which state of the rollout it showed; reload it.")
        data = form.cleaned_data
        action(rollout=found, actor=actor_of(request), now=database_now(), **data)
        return done

    error = attempt(request, act)
    if not request.htmx:
        return redirect("rollout", pk=found.pk)
    now_found = load_rollout(found.pk)
    context = {
        **state_context(request, now_found),
        "stamp": stamp_of(*selectors.state_stamp(now_found, database_now())),
    }
    status = error.status if error else 200
    return render(request, "rollouts/_rollout.html", context, status=status)


def _operate(request: PageRequest, pk: UUID, action: Action, done: str) -> HttpResponse:
    found = load_rollout(pk)
    require_role(request.user, found.model, Role.OPERATOR)
    return _act(request, found, action, done)


@page
@require_POST
def pause(request: PageRequest, pk: UUID) -> HttpResponse:
    done = "Paused: the share stays, the clock stands, and the checks may still roll back."
    return _operate(request, pk, services.pause_rollout, done)


@page
@require_POST
def resume(request: PageRequest, pk: UUID) -> HttpResponse:
    return _operate(request, pk, services.resume_rollout, "Resumed: the step bakes anew.")


@page
@require_POST
def skip(request: PageRequest, pk: UUID) -> HttpResponse:
    done = "Skipped: the next step begins, whatever this one's checks would have said."
    return _operate(request, pk, services.skip_step, done)


@page
@require_POST
def approve(request: PageRequest, pk: UUID) -> HttpResponse:
    """The role is the gate's own: that of an operator may be too little for it, or too much."""
    found = load_rollout(pk)
    require_role(request.user, found.model, services.gate_role(found) or Role.OPERATOR)

    def approve_seen(*, revision: int, **data: Any) -> Rollout:
        # The role above is that of the step that was loaded here: of no later one.
        return services.approve_step(revision=min(revision, found.revision), **data)

    done = "Approved: the step passes as soon as its checks do."
    return _act(request, found, approve_seen, done)


@page
@require_POST
def abort(request: PageRequest, pk: UUID) -> HttpResponse:
    done = "Aborted: all traffic goes back to stable."
    return _operate(request, pk, services.abort_rollout, done)


@page
@require_POST
def promote(request: PageRequest, pk: UUID) -> HttpResponse:
    return _operate(request, pk, services.promote_now, "Promoted: the target is stable now.")


@page
@require_POST
def retry(request: PageRequest, pk: UUID) -> HttpResponse:
    """Start it once more, as a new rollout."""
    found = load_rollout(pk)
    require_role(request.user, found.model, Role.OPERATOR)
    made: list[Rollout] = []

    def again() -> str:
        overrides = request.POST.getlist("override")
        actor, now = actor_of(request), database_now()
        made.append(
            services.retry_rollout(rollout=found, actor=actor, now=now, overrides=overrides)
        )
        return f"Version {found.target.number} is tried again."

    attempt(request, again)
    return go_to(request, "rollout", pk=made[0].pk if made else pk)
