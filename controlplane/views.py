"""The page of a user's API tokens. A secret is shown once, in the response that creates it."""

from __future__ import annotations

from typing import cast

from django.contrib import messages
from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from apps.lib.confirm import Question, ask
from apps.lib.pages import PageRequest, go_to, page
from apps.models.access import actor_of
from apps.models.audit import record_audit
from controlplane.forms import TokenForm
from controlplane.models import ApiToken


def _own(request: PageRequest) -> QuerySet[ApiToken]:
    return ApiToken.objects.filter(user=cast(User, request.user))


@page
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def token_list(request: PageRequest) -> HttpResponse:
    """List the user's tokens (GET), or create one (POST) and show its secret once."""
    form = TokenForm(request.POST or None)
    context = {"form": form, "tokens": _own(request)}
    if request.method != "POST" or not isinstance(request.user, User):
        return render(request, "tokens/token_list.html", context)
    if not form.is_valid():
        return render(request, "tokens/token_list.html", context, status=400)
    token, secret = ApiToken.issue(user_id=request.user.pk, name=form.cleaned_data["name"])
    _audit(request, "token.made", token)
    context = {"form": TokenForm(), "tokens": _own(request), "made": token, "secret": secret}
    return render(request, "tokens/token_list.html", context, status=201)


@page
@require_POST
def token_revoke(request: PageRequest, pk: int) -> HttpResponse:
    token = get_object_or_404(_own(request), pk=pk)
    text = f"Revoke token {token.name}? Clients that use it are refused from now on."
    if question := ask(request, Question(text, "Revoke")):
        return question
    token.delete()
    _audit(request, "token.revoked", token)
    messages.success(request, f"Token {token.name} is revoked.")
    return go_to(request, "token-list")


def _audit(request: PageRequest, action: str, token: ApiToken) -> None:
    target = f"{token.name} of {request.user.get_username()}"
    record_audit(actor=actor_of(request), action=action, target=target)
