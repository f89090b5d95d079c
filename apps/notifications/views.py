"""Pages of notifications. A webhook's secret is shown once, in the answer that made it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from apps.lib.actors import Actor
from apps.lib.clock import database_now
from apps.lib.confirm import Question, ask
from apps.lib.errors import InterlockError
from apps.lib.pages import PageRequest, attempt, go_to, page, render_live, stamp_of
from apps.models.access import actor_of, has_role, require_role
from apps.models.models import Role
from apps.notifications import selectors, services
from apps.notifications.addresses import masked
from apps.notifications.forms import ChangeForm, TargetForm
from apps.notifications.models import NotificationTarget, OutboxMessage

ROWS = 25


@page
@require_safe
def target_list(request: PageRequest) -> HttpResponse:
    """Who is told of what, and the last deliveries; live."""
    now = database_now()
    found = list(selectors.targets(now))
    for target in found:
        _show_to(request, target)
    rows = _page_of(request, "")
    facts = [(t.pk, t.is_active, t.address, t.events, t.model_id, t.open, t.gave_up) for t in found]
    return render_live(
        request,
        template="notifications/list.html",
        fragment="notifications/_list.html",
        stamp=stamp_of(*facts, *_facts(rows)),
        context=lambda: {
            "now": now,
            "targets": found,
            "rows": rows,
            "gave_up": sum(target.gave_up for target in found),
            "can_create": has_role(request.user, None, Role.ADMIN),
        },
    )


@page
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def target_new(request: PageRequest) -> HttpResponse:
    """Make a target; a webhook's secret stands on this answer only."""
    form = TargetForm(request.POST or None)
    if request.method != "POST" or not form.is_valid():
        require_role(request.user, None, Role.ADMIN)
        status = 400 if request.method == "POST" else 200
        return render(request, "notifications/new.html", {"form": form}, status=status)
    require_role(request.user, form.cleaned_data["model"], Role.ADMIN)
    try:
        made = services.create_target(**form.values(), actor=actor_of(request), now=database_now())
    except InterlockError as error:
        context = {"form": form, "refusal": error.message}
        return render(request, "notifications/new.html", context, status=error.status)
    if made.secret:
        return _render_target(request, made, secret=made.secret, status=201)
    messages.success(request, f"{made.name} is made. Send it a test to see that it arrives.")
    return redirect("notification-target", name=made.name)


@page
@require_http_methods(["GET", "HEAD", "POST"])
def target(request: PageRequest, name: str) -> HttpResponse:
    """Show a target (GET) or change it (POST)."""
    found = _find(name)
    if request.method != "POST":
        return _render_target(request, found)
    require_role(request.user, found.model, Role.ADMIN)
    form = ChangeForm(request.POST)
    if not form.is_valid():
        return _render_target(request, found, form=form, status=400)
    require_role(request.user, form.cleaned_data["model"], Role.ADMIN)

    def change() -> str:
        actor, now = actor_of(request), database_now()
        services.change_target(target=found, **form.values(), actor=actor, now=now)
        return f"{name} is changed."

    if error := attempt(request, change):
        return _render_target(request, found, form=form, status=error.status)
    return redirect("notification-target", name=name)


@page
@require_safe
def target_deliveries(request: PageRequest, name: str) -> HttpResponse:
    """The live part of a target's page."""
    found = _show_to(request, _find(name))
    rows = _page_of(request, name)
    return render_live(
        request,
        template="notifications/_deliveries.html",
        fragment="notifications/_deliveries.html",
        stamp=stamp_of(*_facts(rows)),
        context=lambda: {"target": found, "rows": rows, "now": database_now()},
    )


@page
@never_cache
@require_POST
def target_rotate(request: PageRequest, name: str) -> HttpResponse:
    found = _find(name)
    require_role(request.user, found.model, Role.ADMIN)
    text = f"Make a new secret of {name}? What checks signatures with the present one refuses them."
    if asked := ask(request, Question(text, "Make a new secret")):
        return asked
    row = services.rotate_secret(target=found, actor=actor_of(request), now=database_now())
    return _render_target(request, row, secret=row.secret, is_rotated=True)


@page
@require_POST
def target_test(request: PageRequest, name: str) -> HttpResponse:
    told = "A test message is on its way to {name}: its delivery shows below."
    return _act(request, name, services.send_test, told)


@page
@require_POST
def target_activate(request: PageRequest, name: str) -> HttpResponse:
    return _act(request, name, services.activate_target, "{name} is active: it is told from now.")


@page
@require_POST
def target_deactivate(request: PageRequest, name: str) -> HttpResponse:
    text = f"Send nothing more to {name}? What is open for it is given up."
    require_role(request.user, _find(name).model, Role.ADMIN)
    if asked := ask(request, Question(text, f"Deactivate {name}")):
        return asked
    told = "{name} is not active any more: nothing is sent to it."
    return _act(request, name, services.deactivate_target, told)


@page
@require_POST
def delivery_retry(request: PageRequest, pk: Any) -> HttpResponse:
    rows = OutboxMessage.objects.select_related("target__model")
    message = get_object_or_404(rows, pk=pk)
    require_role(request.user, message.target.model, Role.ADMIN)

    def retry() -> str:
        services.retry_message(message=message, actor=actor_of(request), now=database_now())
        return f"{message.event} is sent to {message.target.name} again."

    attempt(request, retry)
    return go_to(request, "notification-target", message.target.name)


def _act(request: PageRequest, name: str, act: Callable[..., object], told: str) -> HttpResponse:
    """Do something to a target that its page then shows."""
    found = _find(name)
    require_role(request.user, found.model, Role.ADMIN)
    actor: Actor = actor_of(request)

    def do() -> str:
        act(target=found, actor=actor, now=database_now())
        return told.format(name=name)

    attempt(request, do)
    return go_to(request, "notification-target", name)


def _find(name: str) -> NotificationTarget:
    return get_object_or_404(NotificationTarget.objects.select_related("model"), name=name)


def _render_target(
    request: PageRequest, found: NotificationTarget, *, status: int = 200, **more: Any
) -> HttpResponse:
    rows = _page_of(request, found.name)
    context = {
        "target": _show_to(request, found),
        "rows": rows,
        "stamp": stamp_of(*_facts(rows)),
        "now": database_now(),
        "form": ChangeForm.of(found),
        **more,
    }
    return render(request, "notifications/target.html", context, status=status)


def _show_to(request: PageRequest, target: NotificationTarget) -> NotificationTarget:
    """Give the row what the template may show of it to who asks."""
    target.can_edit = has_role(request.user, target.model, Role.ADMIN)  # type: ignore[attr-defined]
    is_shown = target.can_edit  # type: ignore[attr-defined]
    target.shown = target.address if is_shown else masked(target.address)  # type: ignore[attr-defined]
    return target


def _page_of(request: PageRequest, name: str) -> Any:
    rows = Paginator(selectors.deliveries(target=name), ROWS).get_page(request.GET.get("page"))
    known: dict[int, bool] = {}
    for row in rows:
        if row.target_id not in known:
            known[row.target_id] = has_role(request.user, row.target.model, Role.ADMIN)
        row.can_edit = known[row.target_id]  # type: ignore[attr-defined]
    return rows


def _facts(rows: Any) -> list[object]:
    return [(row.pk, row.state, row.attempts, row.last_error) for row in rows]
