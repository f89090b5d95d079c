"""Pages of notifications. The secret of a webhook is shown once, when it is created."""

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
from apps.notifications.addresses import mask_address
from apps.notifications.forms import ChangeForm, TargetForm
from apps.notifications.models import NotificationTarget, OutboxMessage

ROWS = 25


@page
@require_safe
def target_list(request: PageRequest) -> HttpResponse:
    """The targets and the latest deliveries; a live page."""
    now = database_now()
    targets = list(selectors.list_targets(now))
    for target in targets:
        _annotate(request, target)
    rows = _page_of(request, "")
    states = [
        (t.pk, t.is_active, t.address, t.events, t.model_id, t.open, t.gave_up) for t in targets
    ]
    return render_live(
        request,
        template="notifications/list.html",
        fragment="notifications/_list.html",
        stamp=stamp_of(*states, *_row_states(rows)),
        context=lambda: {
            "now": now,
            "targets": targets,
            "rows": rows,
            "gave_up": sum(target.gave_up for target in targets),
            "can_create": has_role(request.user, None, Role.ADMIN),
        },
    )


@page
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def target_new(request: PageRequest) -> HttpResponse:
    """Create a target. Only this response shows the secret of a webhook."""
    form = TargetForm(request.POST or None)
    if request.method != "POST" or not form.is_valid():
        require_role(request.user, None, Role.ADMIN)
        status = 400 if request.method == "POST" else 200
        return render(request, "notifications/new.html", {"form": form}, status=status)
    require_role(request.user, form.cleaned_data["model"], Role.ADMIN)
    try:
        actor, now = actor_of(request), database_now()
        target = services.create_target(**form.values(), actor=actor, now=now)
    except InterlockError as error:
        context = {"form": form, "refusal": error.message}
        return render(request, "notifications/new.html", context, status=error.status)
    if target.secret:
        return _render_target(request, target, secret=target.secret, status=201)
    messages.success(request, f"Target {target.name} created. Send a test message to check it.")
    return redirect("notification-target", name=target.name)


@page
@require_http_methods(["GET", "HEAD", "POST"])
def target(request: PageRequest, name: str) -> HttpResponse:
    """Show a target (GET) or change it (POST)."""
    row = _get_target(name)
    if request.method != "POST":
        return _render_target(request, row)
    require_role(request.user, row.model, Role.ADMIN)
    form = ChangeForm(request.POST)
    if not form.is_valid():
        return _render_target(request, row, form=form, status=400)
    require_role(request.user, form.cleaned_data["model"], Role.ADMIN)

    def change() -> str:
        actor, now = actor_of(request), database_now()
        services.change_target(target=row, **form.values(), actor=actor, now=now)
        return f"Target {name} changed."

    if error := attempt(request, change):
        return _render_target(request, row, form=form, status=error.status)
    return redirect("notification-target", name=name)


@page
@require_safe
def target_deliveries(request: PageRequest, name: str) -> HttpResponse:
    """The live fragment of the page of a target."""
    row = _annotate(request, _get_target(name))
    rows = _page_of(request, name)
    return render_live(
        request,
        template="notifications/_deliveries.html",
        fragment="notifications/_deliveries.html",
        stamp=stamp_of(*_row_states(rows)),
        context=lambda: {"target": row, "rows": rows, "now": database_now()},
    )


@page
@never_cache
@require_POST
def target_rotate(request: PageRequest, name: str) -> HttpResponse:
    target = _get_target(name)
    require_role(request.user, target.model, Role.ADMIN)
    text = f"Create a new secret for {name}? The present one signs for 24 more hours."
    if confirmation := ask(request, Question(text, "Create a new secret")):
        return confirmation
    row = services.rotate_secret(target=target, actor=actor_of(request), now=database_now())
    return _render_target(request, row, secret=row.secret, is_rotated=True)


@page
@require_POST
def target_test(request: PageRequest, name: str) -> HttpResponse:
    message = "Test message queued for {name}; see its delivery below."
    return _act(request, name, services.send_test, message)


@page
@require_POST
def target_activate(request: PageRequest, name: str) -> HttpResponse:
    return _act(request, name, services.activate_target, "{name} is active: it receives events.")


@page
@require_POST
def target_deactivate(request: PageRequest, name: str) -> HttpResponse:
    text = f"Deactivate {name}? Its open deliveries are given up."
    require_role(request.user, _get_target(name).model, Role.ADMIN)
    if confirmation := ask(request, Question(text, f"Deactivate {name}")):
        return confirmation
    message = "{name} is not active any more: nothing is sent to it."
    return _act(request, name, services.deactivate_target, message)


@page
@require_POST
def delivery_retry(request: PageRequest, pk: Any) -> HttpResponse:
    rows = OutboxMessage.objects.select_related("target__model")
    message = get_object_or_404(rows, pk=pk)
    require_role(request.user, message.target.model, Role.ADMIN)

    def retry() -> str:
        services.retry_message(message=message, actor=actor_of(request), now=database_now())
        return f"{message.event} will be sent to {message.target.name} again."

    attempt(request, retry)
    return go_to(request, "notification-target", message.target.name)


def _act(
    request: PageRequest, name: str, action: Callable[..., object], message: str
) -> HttpResponse:
    """Run an action on a target and return to the page of the target."""
    target = _get_target(name)
    require_role(request.user, target.model, Role.ADMIN)
    actor: Actor = actor_of(request)

    def do() -> str:
        action(target=target, actor=actor, now=database_now())
        return message.format(name=name)

    attempt(request, do)
    return go_to(request, "notification-target", name)


def _get_target(name: str) -> NotificationTarget:
    return get_object_or_404(NotificationTarget.objects.select_related("model"), name=name)


def _render_target(
    request: PageRequest, target: NotificationTarget, *, status: int = 200, **more: Any
) -> HttpResponse:
    rows = _page_of(request, target.name)
    context = {
        "target": _annotate(request, target),
        "rows": rows,
        "stamp": stamp_of(*_row_states(rows)),
        "now": database_now(),
        "form": ChangeForm.of(target),
        **more,
    }
    return render(request, "notifications/target.html", context, status=status)


def _annotate(request: PageRequest, target: NotificationTarget) -> NotificationTarget:
    """Set what the template may show to the user: `can_edit` and the `shown` address."""
    target.can_edit = has_role(request.user, target.model, Role.ADMIN)  # type: ignore[attr-defined]
    is_shown = target.can_edit  # type: ignore[attr-defined]
    target.shown = target.address if is_shown else mask_address(target.address)  # type: ignore[attr-defined]
    return target


def _page_of(request: PageRequest, name: str) -> Any:
    rows = Paginator(selectors.list_deliveries(target=name), ROWS).get_page(request.GET.get("page"))
    known: dict[int, bool] = {}
    for row in rows:
        if row.target_id not in known:
            known[row.target_id] = has_role(request.user, row.target.model, Role.ADMIN)
        row.can_edit = known[row.target_id]  # type: ignore[attr-defined]
    return rows


def _row_states(rows: Any) -> list[object]:
    return [(row.pk, row.state, row.attempts, row.last_error) for row in rows]
