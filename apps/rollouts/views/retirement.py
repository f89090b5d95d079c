"""Buttons that take versions and models out of the way; each is asked for by the server first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from apps.lib.clock import database_now
from apps.lib.confirm import Question, ask
from apps.lib.pages import PageRequest, attempt, go_to, page
from apps.models.access import actor_of, has_role, require_role
from apps.models.models import ModelVersion, RegisteredModel, Role
from apps.rollouts import undeploying
from apps.rollouts.version_usage import needs_of_model, needs_of_service, needs_of_version

WHY = "Reason, kept in the log"


@dataclass(frozen=True)
class Action:
    """What a button does: its verb, what follows from a yes, and what is said afterwards."""

    verb: str
    text: str
    said: str
    role: Role
    act: Callable[..., Any]


@dataclass(frozen=True)
class Button:
    action: str
    url: str

    @property
    def says(self) -> str:
        return f"{self.action.capitalize()}…" if self.asks else self.action.capitalize()

    @property
    def asks(self) -> bool:
        """Whether the server asks before it acts."""
        return self.action != "restore"


UNLOADED = "It is unloaded as soon as no instance routes to it."
ON_VERSION = {
    "undeploy": Action(
        "Undeploy",
        f"Undeploy {{}}? {UNLOADED} Who asks for it by its own path gets 404. Promoting or "
        "deploying it loads it again.",
        "{} leaves its servers.",
        Role.OPERATOR,
        undeploying.undeploy_version,
    ),
    "archive": Action(
        "Archive",
        f"Archive {{}}? It leaves the lists and cannot be promoted until it is restored. "
        f"{UNLOADED} Its files stay.",
        "{} is archived.",
        Role.OPERATOR,
        undeploying.archive_version,
    ),
    "delete": Action(
        "Delete",
        f"Delete {{}} for good? {UNLOADED} Then its files are deleted, here and in the model "
        "repository. Nothing brings it back, and its number is not given again. What rollouts "
        "and experiments say of it stays.",
        "{} is being deleted.",
        Role.ADMIN,
        undeploying.delete_version,
    ),
}
ON_MODEL = {
    "undeploy": Action(
        "Undeploy",
        "Take {} out of service? No version is stable then, all are unloaded, and who asks for "
        "the model gets 404 until a version is promoted.",
        "{} is out of service.",
        Role.ADMIN,
        undeploying.undeploy_model,
    ),
    "archive": Action(
        "Archive",
        "Archive {}? It leaves the lists, and nothing is imported for it, until it is restored.",
        "{} is archived.",
        Role.OPERATOR,
        undeploying.archive_model,
    ),
    "delete": Action(
        "Delete",
        "Delete {} for good, with all its versions and their files? Roles on it and its aliases "
        "go as well. Nothing brings them back. What rollouts and experiments say of it stays.",
        "{} is being deleted.",
        Role.ADMIN,
        undeploying.delete_model,
    ),
}


@page
@require_POST
def version_retire(request: PageRequest, name: str, number: int, action: str) -> HttpResponse:
    """Undeploy, archive or delete a version."""
    found = _version(name, number)
    chosen = ON_VERSION[action]
    require_role(request.user, found.model, chosen.role)
    needs = needs_of_version(found, database_now())
    return _retire(request, chosen, found, needs) or go_to(request, "version", name, number)


@page
@require_POST
def version_restore(request: PageRequest, name: str, number: int) -> HttpResponse:
    found = _version(name, number)
    require_role(request.user, found.model, Role.OPERATOR)

    def restore() -> str:
        now = database_now()
        undeploying.restore_version(version=found, actor=actor_of(request), now=now)
        return f"{found} is back in the lists."

    attempt(request, restore)
    return go_to(request, "version", name, number)


@page
@require_POST
def model_retire(request: PageRequest, name: str, action: str) -> HttpResponse:
    """Undeploy, archive or delete a model."""
    found = get_object_or_404(RegisteredModel.objects.select_related("stable"), name=name)
    chosen = ON_MODEL[action]
    require_role(request.user, found, chosen.role)
    needs_of = needs_of_service if action == "undeploy" else needs_of_model
    needs = needs_of(found, database_now())
    return _retire(request, chosen, found, needs) or go_to(request, "model", name)


@page
@require_POST
def model_restore(request: PageRequest, name: str) -> HttpResponse:
    found = get_object_or_404(RegisteredModel, name=name)
    require_role(request.user, found, Role.OPERATOR)

    def restore() -> str:
        undeploying.restore_model(model=found, actor=actor_of(request), now=database_now())
        return f"{found.name} is back in the lists."

    attempt(request, restore)
    return go_to(request, "model", name)


def _version(name: str, number: int) -> ModelVersion:
    versions = ModelVersion.objects.select_related("model__stable")
    return get_object_or_404(versions, model__name=name, number=number)


def _retire(
    request: PageRequest, chosen: Action, found: ModelVersion | RegisteredModel, needs: list[str]
) -> HttpResponse | None:
    """Ask, or act on a yes and leave a message; None: the person goes on to the page.

    While something needs it nobody is asked and nothing is done. The service looks again.
    """
    if needs:
        verb = chosen.verb.lower()
        messages.error(request, f"Cannot {verb} {found}: {'; '.join(needs)}.")
        return None
    question = Question(chosen.text.format(found), f"{chosen.verb} {found}", reason=WHY)
    if asked := ask(request, question):
        return asked

    def act() -> str:
        on = {"model" if isinstance(found, RegisteredModel) else "version": found}
        reason = request.POST.get("reason", "")[: undeploying.REASON_MAX]
        chosen.act(**on, actor=actor_of(request), now=database_now(), reason=reason)
        return chosen.said.format(found)

    attempt(request, act)
    return None


# --- the card with the buttons -------------------------------------------------------------------


@page
@require_safe
def version_retirement(request: PageRequest, name: str, number: int) -> HttpResponse:
    """What may be done with a version now, and what needs it: a card, or without HTMX a page."""
    found = _version(name, number)
    needs = [] if found.is_deleted else needs_of_version(found, database_now())
    actions = [] if needs or found.is_deleted else list(ON_VERSION)
    loaded = found.deployments.filter(state__in=undeploying.LOADED)
    if "undeploy" in actions and not loaded.exists():
        actions.remove("undeploy")
    if found.is_archived and "archive" in actions:
        actions[actions.index("archive")] = "restore"
    urls = {a: reverse(f"version-{a}", args=[name, number]) for a in actions}
    return _card(request, found, found.model, needs, urls)


@page
@require_safe
def model_retirement(request: PageRequest, name: str) -> HttpResponse:
    """The same of a model."""
    found = get_object_or_404(RegisteredModel.objects.select_related("stable"), name=name)
    now = database_now()
    serves = found.stable is not None
    needs_of = needs_of_service if serves else needs_of_model
    needs = [] if found.is_deleted else needs_of(found, now)
    actions: list[str] = []
    if not needs and not found.is_deleted:
        archive = "restore" if found.is_archived else "archive"
        actions = ["undeploy"] if serves else [archive, "delete"]
    urls = {a: reverse(f"model-{a}", args=[name]) for a in actions}
    return _card(request, found, found, needs, urls)


def _card(
    request: PageRequest,
    found: ModelVersion | RegisteredModel,
    model: RegisteredModel,
    needs: list[str],
    urls: dict[str, str],
) -> HttpResponse:
    on = ON_MODEL if found is model else ON_VERSION
    buttons = [
        Button(action, url)
        for action, url in urls.items()
        if has_role(request.user, model, on[action].role if action in on else Role.OPERATOR)
    ]
    context = {
        "subject": found,
        "model": model,
        "is_model": found is model,
        "needs": needs,
        "buttons": buttons,
    }
    template = "models/_retire.html" if request.htmx else "models/retire.html"
    return render(request, template, context)
