"""Pages of releases: the list, one release, and the form."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from django.contrib import messages
from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from apps.lib.clock import database_now
from apps.lib.confirm import REASON_MAX, ask
from apps.lib.errors import InterlockError
from apps.lib.pages import PageRequest, attempt, go_to, page, render_live, stamp_of
from apps.models.access import actor_of, require_role
from apps.models.models import Role
from apps.rollouts.fleet_status import silent_instances
from apps.rollouts.freezes import Freeze
from apps.rollouts.models import Release, Rollout
from apps.rollouts.overrides import holding_freeze
from apps.rollouts.release_rows import ROWS_MIN, Row, joint_obstacles, read_rows, with_empty
from apps.rollouts.releases import abort_release, start_release
from apps.rollouts.rule_forms import ReleaseForm
from apps.rollouts.selectors.fleet import read_fleet
from apps.rollouts.selectors.releases import find_releases, state_of
from apps.rollouts.selectors.rollouts import steps_of, steps_of_saved
from apps.rollouts.selectors.rules import allowed
from apps.rollouts.views.confirmations import can_abort, of_release_abort, release_abort_label

LIST_PAGE = 25


@page
@require_safe
def release_list(request: PageRequest) -> HttpResponse:
    shown = Paginator(find_releases(), LIST_PAGE).get_page(request.GET.get("page"))
    context = {
        "releases": shown,
        "rows": [(each, state_of(each), _rollouts(each)) for each in shown],
        "can_start": allowed(cast(User, request.user), Role.OPERATOR).models.exists(),
    }
    return render(request, "rollouts/releases.html", context)


def _rollouts(release: Release) -> list[Rollout]:
    return sorted(release.rollouts.all(), key=lambda rollout: str(rollout.model.name))


@page
@require_safe
def release(request: PageRequest, pk: UUID) -> HttpResponse:
    release = get_object_or_404(find_releases(), pk=pk)
    rollouts = _rollouts(release)
    freezes = _freezes(rollouts)
    state: list[tuple[object, ...]] = [
        (each.pk, each.revision, each.weight_bp, each.reason, each.lacks_reason, can_abort(each))
        for each in rollouts
    ]
    state += [(rollout.pk, freeze.window.pk, freeze.until) for rollout, freeze in freezes]
    return render_live(
        request,
        template="rollouts/release.html",
        fragment="rollouts/_release.html",
        stamp=stamp_of(*state),
        context=lambda: {**_release_context(request, release, rollouts), "freezes": freezes},
    )


def _freezes(rollouts: list[Rollout]) -> list[tuple[Rollout, Freeze]]:
    """Return the rollouts that a freeze holds, each with its longest freeze."""
    now = database_now()
    held = [(each, holding_freeze(each, now)) for each in rollouts]
    return [(rollout, freeze) for rollout, freeze in held if freeze is not None]


def _release_context(
    request: PageRequest, release: Release, rollouts: list[Rollout]
) -> dict[str, Any]:
    live = [each for each in rollouts if each.is_live]
    operates = allowed(cast(User, request.user), Role.OPERATOR)
    affected = [each for each in rollouts if can_abort(each)]
    may_abort = all(operates.on(each.model_id) for each in rollouts)
    return {
        "now": database_now(),
        "release": release,
        "state": state_of(release),
        "rollouts": rollouts,
        "live": live,
        # The least advanced rollout, for which the others wait.
        "steps": steps_of(min(rollouts, key=lambda each: each.step_index)) if rollouts else [],
        "passed": [each for each in live if each.step_passed_at],
        "awaited": [each for each in live if not each.step_passed_at],
        "affected": affected,
        "abort_label": release_abort_label(affected),
        "can_abort": may_abort and bool(affected),
        "can_operate": may_abort,
        "unexplained": [each for each in rollouts if each.lacks_reason] if may_abort else [],
    }


@page
@require_POST
def abort(request: PageRequest, pk: UUID) -> HttpResponse:
    release = get_object_or_404(find_releases(), pk=pk)
    rollouts = _rollouts(release)
    for each in rollouts:
        require_role(request.user, each.model, Role.OPERATOR)
    if confirmation := ask(request, of_release_abort(release, rollouts)):
        return confirmation

    def act() -> str:
        reason = request.POST.get("reason", "").strip()[:REASON_MAX]
        abort_release(release=release, actor=actor_of(request), now=database_now(), reason=reason)
        return "Aborted. All traffic of all models goes back to stable."

    attempt(request, act)
    return go_to(request, "release", pk=pk)


@page
@require_http_methods(["GET", "HEAD", "POST"])
def release_new(request: PageRequest) -> HttpResponse:
    """Choose models, versions and the plan (GET); start the release (POST)."""
    data = request.POST if request.method == "POST" else request.GET
    rows = read_rows(
        data.getlist("model"), data.getlist("version"), is_final=request.method == "POST"
    )
    if request.method != "POST":
        # The name is validated only on submit.
        form = ReleaseForm(initial=data.dict())
        return _render_new(request, form, rows)
    for row in rows:
        if row.model is not None:
            require_role(request.user, row.model, Role.OPERATOR)
    form = ReleaseForm(data)
    if not form.is_valid() or any(row.error for row in rows):
        return _render_new(request, form, rows, status=400)
    try:
        started = start_release(
            name=form.cleaned_data["name"],
            targets={row.model: row.target for row in rows if row.model and row.target},
            plan=form.cleaned_data["plan"],
            actor=actor_of(request),
            now=database_now(),
            overrides=data.getlist("override"),
        )
    except InterlockError as error:
        return _render_new(request, form, rows, refusal=error.message, status=error.status)
    messages.success(request, f"Release {started.name} is started.")
    return redirect("release", pk=started.pk)


def _render_new(
    request: PageRequest,
    form: ReleaseForm,
    rows: list[Row],
    *,
    refusal: str = "",
    status: int = 200,
) -> HttpResponse:
    now = database_now()
    data = request.POST if request.method == "POST" else request.GET
    plans = list(cast(Any, form.fields["plan"]).queryset)
    plan = next((each for each in plans if each.name == data.get("plan")), None)
    plan = plan or next(iter(plans), None)
    operates = allowed(cast(User, request.user), Role.OPERATOR)
    context = {
        "now": now,
        "form": form,
        "rows": with_empty(rows),
        "chosen": rows,
        "models": operates.models.exclude(stable=None),
        "plans": plans,
        "plan": plan,
        "steps": steps_of_saved(plan) if plan else [],
        "is_ready": len(rows) >= ROWS_MIN and plan and not any(row.error for row in rows),
        "obstacles": joint_obstacles(rows, now),
        "overrides": data.getlist("override"),
        "fleet": read_fleet(now),
        "silent": list(silent_instances(now)),
        "refusal": refusal,
    }
    template = "rollouts/_release_new.html" if request.htmx else "rollouts/release_new.html"
    return render(request, template, context, status=status)
