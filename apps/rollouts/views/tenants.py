"""Pages of tenants: who may ask for predictions, how much, and with which API keys.

A key is shown once, in the answer that made it.
"""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.db.models import Count, Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from apps.lib.clock import database_now
from apps.lib.confirm import Question, ask
from apps.lib.errors import InterlockError
from apps.lib.pages import PageRequest, attempt, go_to, page
from apps.models.access import actor_of, has_role, require_role
from apps.models.models import ApiKey, Role, Tenant
from apps.rollouts import tenants
from apps.rollouts.serving_forms import KeyForm, QuotaForm, TenantForm


@page
@require_http_methods(["GET", "HEAD", "POST"])
def tenant_list(request: PageRequest) -> HttpResponse:
    """List the tenants (GET) or make one (POST)."""
    if request.method != "POST":
        return _render_list(request, TenantForm())
    require_role(request.user, None, Role.ADMIN)
    form = TenantForm(request.POST)
    if not form.is_valid():
        return _render_list(request, form, status=400)
    try:
        made = tenants.create_tenant(
            **form.cleaned_data, actor=actor_of(request), now=database_now()
        )
    except InterlockError as error:
        return _render_list(request, form, refusal=error.message, status=error.status)
    messages.success(request, f"Tenant {made.name} is made. It needs an API key now.")
    return redirect("tenant", name=made.name)


def _render_list(
    request: PageRequest, form: TenantForm, *, refusal: str = "", status: int = 200
) -> HttpResponse:
    active = Count("keys", filter=Q(keys__revoked_at=None))
    rows = list(Tenant.objects.annotate(active_keys=active))
    context = {
        "tenants": rows,
        "form": form,
        "refusal": refusal,
        "key_required": tenants.is_key_required(),
        "active_keys": sum(row.active_keys for row in rows),
        "can_edit": has_role(request.user, None, Role.ADMIN),
    }
    return render(request, "tenants/list.html", context, status=status)


@page
@require_http_methods(["GET", "HEAD", "POST"])
def tenant(request: PageRequest, name: str) -> HttpResponse:
    """Show a tenant (GET) or change its quota (POST)."""
    found = get_object_or_404(Tenant, name=name)
    if request.method != "POST":
        return _render_tenant(request, found)
    require_role(request.user, None, Role.ADMIN)
    # The form writes what was typed into the row that it is given: it gets one of its own.
    form = QuotaForm(request.POST, instance=Tenant.objects.get(pk=found.pk))
    if not form.is_valid():
        return _render_tenant(request, found, form=form, status=400)

    def change() -> str:
        actor, now = actor_of(request), database_now()
        tenants.change_quota(tenant=found, **form.cleaned_data, actor=actor, now=now)
        return f"The quota of {name} is changed."

    if error := attempt(request, change):
        return _render_tenant(request, found, form=form, status=error.status)
    return redirect("tenant", name=name)


def _render_tenant(
    request: PageRequest, found: Tenant, *, status: int = 200, **more: Any
) -> HttpResponse:
    keys = list(found.keys.order_by("-id"))
    context = {
        "tenant": found,
        "active": [key for key in keys if key.revoked_at is None],
        "revoked": [key for key in keys if key.revoked_at is not None],
        "form": QuotaForm(instance=found),
        "key_form": KeyForm(),
        "key_required": tenants.is_key_required(),
        "can_edit": has_role(request.user, None, Role.ADMIN),
        **more,
    }
    return render(request, "tenants/tenant.html", context, status=status)


ANSWER = Question(
    "Answer requests that bring no API key? They are counted as nobody's, and no quota holds for "
    "them.",
    "Answer them",
)


def _of_requiring() -> Question:
    active = ApiKey.objects.filter(revoked_at=None).count()
    keys = f"{active} active key{'' if active == 1 else 's'}"
    text = f"Refuse requests that bring no API key? Whoever shows none of the {keys} is refused "
    text += "with 401, at once."
    return Question(text, "Refuse them")


def _of_revoking(key: ApiKey) -> Question:
    is_last = key.tenant.keys.filter(revoked_at=None).exclude(pk=key.pk).count() == 0
    text = f"Revoke API key {key.name} (…{key.hint})? Applications that use it are refused within "
    text += "seconds, and it cannot be given back."
    if is_last and tenants.is_key_required():
        text += " It is the tenant's last one."
    return Question(text, f"Revoke {key.name}")


@page
@never_cache
@require_POST
def key_create(request: PageRequest, name: str) -> HttpResponse:
    """Make an API key, which stands on this answer only."""
    require_role(request.user, None, Role.ADMIN)
    found = get_object_or_404(Tenant, name=name)
    form = KeyForm(request.POST)
    if not form.is_valid():
        return _render_tenant(request, found, key_form=form, status=400)
    actor, now = actor_of(request), database_now()
    made, secret = tenants.create_key(tenant=found, actor=actor, now=now, **form.cleaned_data)
    return _render_tenant(request, found, made=made, secret=secret, status=201)


@page
@require_POST
def key_revoke(request: PageRequest, name: str, pk: int) -> HttpResponse:
    require_role(request.user, None, Role.ADMIN)
    key = get_object_or_404(ApiKey, pk=pk, tenant__name=name)
    if asked := ask(request, _of_revoking(key)):
        return asked
    tenants.revoke_key(key=key, actor=actor_of(request), now=database_now())
    messages.success(request, f"API key {key.name} is revoked: it opens nothing any more.")
    return go_to(request, "tenant", name)


@page
@require_POST
def tenant_delete(request: PageRequest, name: str) -> HttpResponse:
    require_role(request.user, None, Role.ADMIN)
    found = get_object_or_404(Tenant, name=name)
    active = found.keys.filter(revoked_at=None).count()
    text = f"Delete tenant {name}? API keys of it that will be refused at once: {active}."
    if asked := ask(request, Question(text, f"Delete {name}")):
        return asked
    tenants.delete_tenant(tenant=found, actor=actor_of(request), now=database_now())
    messages.success(request, f"Tenant {name} is deleted, with its API keys.")
    return go_to(request, "tenant-list")


@page
@require_POST
def key_required(request: PageRequest) -> HttpResponse:
    require_role(request.user, None, Role.ADMIN)
    required = request.POST.get("required") == "1"
    if asked := ask(request, _of_requiring() if required else ANSWER):
        return asked

    def change() -> str:
        tenants.require_keys(required=required, actor=actor_of(request), now=database_now())
        return "An API key is required now." if required else "No API key is required any more."

    attempt(request, change)
    return go_to(request, "tenant-list")
