"""Pages of tenants, quotas and API keys.

A key is shown only once, in the response that created it.
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
    """List the tenants (GET) or create one (POST)."""
    if request.method != "POST":
        return _render_list(request, TenantForm())
    require_role(request.user, None, Role.ADMIN)
    form = TenantForm(request.POST)
    if not form.is_valid():
        return _render_list(request, form, status=400)
    try:
        created = tenants.create_tenant(
            **form.cleaned_data, actor=actor_of(request), now=database_now()
        )
    except InterlockError as error:
        return _render_list(request, form, refusal=error.message, status=error.status)
    messages.success(request, f"Tenant {created.name} is created. Create an API key for it next.")
    return redirect("tenant", name=created.name)


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
    tenant = get_object_or_404(Tenant, name=name)
    if request.method != "POST":
        return _render_tenant(request, tenant)
    require_role(request.user, None, Role.ADMIN)
    # The form writes the values into its instance, so it gets a copy of the row.
    form = QuotaForm(request.POST, instance=Tenant.objects.get(pk=tenant.pk))
    if not form.is_valid():
        return _render_tenant(request, tenant, form=form, status=400)

    def change() -> str:
        actor, now = actor_of(request), database_now()
        tenants.change_quota(tenant=tenant, **form.cleaned_data, actor=actor, now=now)
        return f"The quota of {name} is changed."

    if error := attempt(request, change):
        return _render_tenant(request, tenant, form=form, status=error.status)
    return redirect("tenant", name=name)


def _render_tenant(
    request: PageRequest, tenant: Tenant, *, status: int = 200, **more: Any
) -> HttpResponse:
    keys = list(tenant.keys.order_by("-id"))
    context = {
        "tenant": tenant,
        "active": [key for key in keys if key.revoked_at is None],
        "revoked": [key for key in keys if key.revoked_at is not None],
        "form": QuotaForm(instance=tenant),
        "key_form": KeyForm(),
        "key_required": tenants.is_key_required(),
        "can_edit": has_role(request.user, None, Role.ADMIN),
        **more,
    }
    return render(request, "tenants/tenant.html", context, status=status)


ANSWER = Question(
    "Answer requests without an API key? They belong to no tenant, and no quota applies to them.",
    "Answer them",
)


def _of_requiring() -> Question:
    active = ApiKey.objects.filter(revoked_at=None).count()
    keys = f"{active} active key{'' if active == 1 else 's'}"
    text = f"Refuse requests without an API key? Requests with none of the {keys} get 401 at once."
    return Question(text, "Refuse them")


def _of_revoking(key: ApiKey) -> Question:
    is_last = key.tenant.keys.filter(revoked_at=None).exclude(pk=key.pk).count() == 0
    text = f"Revoke API key {key.name} (…{key.hint})? Applications that use it are refused within "
    text += "seconds. This cannot be undone."
    if is_last and tenants.is_key_required():
        text += " It is the last key of the tenant."
    return Question(text, f"Revoke {key.name}")


@page
@never_cache
@require_POST
def key_create(request: PageRequest, name: str) -> HttpResponse:
    """Create an API key; only this response shows it."""
    require_role(request.user, None, Role.ADMIN)
    tenant = get_object_or_404(Tenant, name=name)
    form = KeyForm(request.POST)
    if not form.is_valid():
        return _render_tenant(request, tenant, key_form=form, status=400)
    actor, now = actor_of(request), database_now()
    key, secret = tenants.create_key(tenant=tenant, actor=actor, now=now, **form.cleaned_data)
    return _render_tenant(request, tenant, key=key, secret=secret, status=201)


@page
@require_POST
def key_revoke(request: PageRequest, name: str, pk: int) -> HttpResponse:
    require_role(request.user, None, Role.ADMIN)
    key = get_object_or_404(ApiKey, pk=pk, tenant__name=name)
    if confirmation := ask(request, _of_revoking(key)):
        return confirmation
    tenants.revoke_key(key=key, actor=actor_of(request), now=database_now())
    messages.success(request, f"API key {key.name} is revoked.")
    return go_to(request, "tenant", name)


@page
@require_POST
def tenant_delete(request: PageRequest, name: str) -> HttpResponse:
    require_role(request.user, None, Role.ADMIN)
    tenant = get_object_or_404(Tenant, name=name)
    active = tenant.keys.filter(revoked_at=None).count()
    text = f"Delete tenant {name}? Its active API keys ({active}) are refused at once."
    if confirmation := ask(request, Question(text, f"Delete {name}")):
        return confirmation
    tenants.delete_tenant(tenant=tenant, actor=actor_of(request), now=database_now())
    messages.success(request, f"Tenant {name} and its API keys are deleted.")
    return go_to(request, "tenant-list")


@page
@require_POST
def key_required(request: PageRequest) -> HttpResponse:
    require_role(request.user, None, Role.ADMIN)
    required = request.POST.get("required") == "1"
    if confirmation := ask(request, _of_requiring() if required else ANSWER):
        return confirmation

    def change() -> str:
        tenants.require_keys(required=required, actor=actor_of(request), now=database_now())
        return "An API key is required now." if required else "No API key is required any more."

    attempt(request, change)
    return go_to(request, "tenant-list")
