"""What a person may do to a rollout. Each is a POST with the revision that the person saw.

An abort needs none: it is right from every phase.
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
# In these a person skips a step, or promotes.
ON_STEP = {Phase.BAKING, Phase.PAUSED}


def _act(
    request: PageRequest,
    found: Rollout,
    action: Action,
    done: str,
    question: Callable[[], Question] | None = None,
    phases: Collection[Phase] = ON_STEP,
) -> HttpResponse:
    """Do `action` with the revision that the person saw; then show how the rollout stands.

    With a `question` it is asked first, unless the page is stale: then the action is refused. The
    caller has made sure that the person may.
    """
    form = ActionForm(request.POST)
    data = form.cleaned_data if form.is_valid() else {}
    # What the service refuses anyhow is not asked about.
    is_fresh = data.get("revision") == found.revision and found.phase in phases
    if question is not None and is_fresh and (asked := ask(request, question())):
        return asked

    def act() -> str:
        if not data:
            raise Invalid("The page did not say which state of the rollout it showed; reload it.")
        overrides = request.POST.getlist("override")
        more: dict[str, Any] = {"overrides": overrides} if overrides else {}
        action(rollout=found, actor=actor_of(request), now=database_now(), **data, **more)
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
    answer = render(request, "rollouts/_rollout.html", context, status=status)
    # The part that was there when the form was sent may have been replaced by a newer one.
    return reswap(retarget(answer, "#live"), "outerHTML")


def _operated(request: PageRequest, pk: UUID) -> Rollout:
    found = load_rollout(pk)
    require_role(request.user, found.model, Role.OPERATOR)
    return found


@page
@require_POST
def pause(request: PageRequest, pk: UUID) -> HttpResponse:
    done = "Paused: the share stays, the clock stands, and the checks may still roll back."
    return _act(request, _operated(request, pk), services.pause_rollout, done)


@page
@require_POST
def resume(request: PageRequest, pk: UUID) -> HttpResponse:
    done = "Resumed: the step bakes anew."
    return _act(request, _operated(request, pk), services.resume_rollout, done)


@page
@require_POST
def skip(request: PageRequest, pk: UUID) -> HttpResponse:
    found = _operated(request, pk)
    done = "Skipped: the next step begins, whatever this one's checks would have said."
    actor = actor_of(request)
    return _act(
        request,
        found,
        services.skip_step,
        done,
        lambda: confirmations.of_skip(found, actor, database_now()),
    )


@page
@require_POST
def approve(request: PageRequest, pk: UUID) -> HttpResponse:
    """Who may is the service's to say: it depends on the step that it finds, and on who started."""
    found = load_rollout(pk)
    if not has_role(request.user, found.model, Role.OPERATOR):
        require_role(request.user, found.model, services.gate_role(found) or Role.OPERATOR)
    done = "Approved: the step passes as soon as its checks do."
    actor = actor_of(request)
    return _act(
        request,
        found,
        services.approve_step,
        done,
        lambda: confirmations.of_approve(found, actor),
        {Phase.BAKING},
    )


@page
@require_POST
def promote(request: PageRequest, pk: UUID) -> HttpResponse:
    found = _operated(request, pk)
    actor = actor_of(request)
    return _act(
        request,
        found,
        services.promote_now,
        "Promoted: the target is stable now.",
        lambda: confirmations.of_promote(found, actor, database_now()),
    )


@page
@require_POST
def override_freeze(request: PageRequest, pk: UUID) -> HttpResponse:
    found = _operated(request, pk)
    done = "Overridden: it goes on in this freeze."
    return _act(
        request,
        found,
        services.override_freeze,
        done,
        lambda: confirmations.of_freeze(found, database_now()),
        HELD_PHASES,
    )


@page
@require_POST
def abort(request: PageRequest, pk: UUID) -> HttpResponse:
    """The red button: abort, or roll back what was promoted; whatever the page showed."""
    found = _operated(request, pk)
    if asked := ask(request, confirmations.of_abort(found)):
        return asked
    rows = [found]

    def act() -> str:
        reason = request.POST.get("reason", "").strip()[:REASON_MAX]
        actor, now = actor_of(request), database_now()
        rows.append(services.abort_rollout(rollout=found, actor=actor, now=now, reason=reason))
        return f"Aborted: all traffic of {found.model.name} goes back to the version before."

    attempt(request, act)
    return go_to(request, "rollout", pk=rows[-1].pk)


@page
@require_POST
def reason(request: PageRequest, pk: UUID) -> HttpResponse:
    """Say afterwards why it was aborted."""
    found = _operated(request, pk)

    def act() -> str:
        text, actor = request.POST.get("reason", "")[:REASON_MAX], actor_of(request)
        services.give_reason(rollout=found, actor=actor, now=database_now(), reason=text)
        return "The reason is kept."

    attempt(request, act)
    return go_back(request, "rollout-list")


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
