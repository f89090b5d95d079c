"""Buttons that undeploy, archive, restore and delete versions and models, with confirmation."""

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

REASON = "Reason (logged)"


@dataclass(frozen=True)
class Action:
    """A button: its verb, the confirmation text, the success message, the required role."""

    verb: str
    text: str
    message: str
    role: Role
    act: Callable[..., Any]


@dataclass(frozen=True)
class Button:
    action: str
    url: str

    @property
    def label(self) -> str:
        return f"{self.action.capitalize()}…" if self.is_confirmed else self.action.capitalize()

    @property
    def is_confirmed(self) -> bool:
        """Whether the server asks for a confirmation."""
        return self.action != "restore"


UNLOADED = "It is unloaded as soon as no instance routes to it."
ON_VERSION = {
    "undeploy": Action(
        "Undeploy",
        f"Undeploy {{}}? {UNLOADED} Requests for this version get 404. Promoting or deploying it "
        "loads it again.",
        "{} is being unloaded.",
        Role.OPERATOR,
        undeploying.undeploy_version,
    ),
    "archive": Action(
        "Archive",
        f"Archive {{}}? It is hidden from lists and cannot be promoted until it is restored. "
        f"{UNLOADED} Its files stay.",
        "{} is archived.",
        Role.OPERATOR,
        undeploying.archive_version,
    ),
    "delete": Action(
        "Delete",
        f"Delete {{}} permanently? {UNLOADED} Then its files are deleted, here and in the model "
        "repository. This cannot be undone, and its number is not reused. Records of rollouts "
        "and experiments stay.",
        "{} is being deleted.",
        Role.ADMIN,
        undeploying.delete_version,
    ),
}
ON_MODEL = {
    "undeploy": Action(
        "Undeploy",
        "Take {} out of service? It has no stable version then, all versions are unloaded, and "
        "requests get 404 until a version is promoted.",
        "{} is out of service.",
        Role.ADMIN,
        undeploying.undeploy_model,
    ),
    "archive": Action(
        "Archive",
        "Archive {}? It is hidden from lists, and imports stop, until it is restored.",
        "{} is archived.",
        Role.OPERATOR,
        undeploying.archive_model,
    ),
    "delete": Action(
        "Delete",
        "Delete {} permanently, with all its versions and their files? Its roles and aliases are "
        "deleted as well. This cannot be undone. Records of rollouts and experiments stay.",
        "{} is being deleted.",
        Role.ADMIN,
        undeploying.delete_model,
    ),
}


@page
@require_POST
def version_retire(request: PageRequest, name: str, number: int, action: str) -> HttpResponse:
    """Undeploy, archive or delete a version."""
    version = _version(name, number)
    chosen = ON_VERSION[action]
    require_role(request.user, version.model, chosen.role)
    needs = needs_of_version(version, database_now())
    return _retire(request, chosen, version, needs) or go_to(request, "version", name, number)


@page
@require_POST
def version_restore(request: PageRequest, name: str, number: int) -> HttpResponse:
    version = _version(name, number)
    require_role(request.user, version.model, Role.OPERATOR)

    def restore() -> str:
        now = database_now()
        undeploying.restore_version(version=version, actor=actor_of(request), now=now)
        return f"{version} is restored."

    attempt(request, restore)
    return go_to(request, "version", name, number)


@page
@require_POST
def model_retire(request: PageRequest, name: str, action: str) -> HttpResponse:
    """Undeploy, archive or delete a model."""
    model = get_object_or_404(RegisteredModel.objects.select_related("stable"), name=name)
    chosen = ON_MODEL[action]
    require_role(request.user, model, chosen.role)
    needs_of = needs_of_service if action == "undeploy" else needs_of_model
    needs = needs_of(model, database_now())
    return _retire(request, chosen, model, needs) or go_to(request, "model", name)


@page
@require_POST
def model_restore(request: PageRequest, name: str) -> HttpResponse:
    model = get_object_or_404(RegisteredModel, name=name)
    require_role(request.user, model, Role.OPERATOR)

    def restore() -> str:
        undeploying.restore_model(model=model, actor=actor_of(request), now=database_now())
        return f"{model.name} is restored."

    attempt(request, restore)
    return go_to(request, "model", name)


def _version(name: str, number: int) -> ModelVersion:
    versions = ModelVersion.objects.select_related("model__stable")
    return get_object_or_404(versions, model__name=name, number=number)


def _retire(
    request: PageRequest, chosen: Action, subject: ModelVersion | RegisteredModel, needs: list[str]
) -> HttpResponse | None:
    """Ask for a confirmation, or act and add a message; None: redirect to the page.

    While it is in use nothing is asked or done. The service checks the uses again.
    """
    if needs:
        verb = chosen.verb.lower()
        messages.error(request, f"Cannot {verb} {subject}: {'; '.join(needs)}.")
        return None
    question = Question(chosen.text.format(subject), f"{chosen.verb} {subject}", reason=REASON)
    if confirmation := ask(request, question):
        return confirmation

    def act() -> str:
        target = {"model" if isinstance(subject, RegisteredModel) else "version": subject}
        reason = request.POST.get("reason", "")[: undeploying.REASON_MAX]
        chosen.act(**target, actor=actor_of(request), now=database_now(), reason=reason)
        return chosen.message.format(subject)

    attempt(request, act)
    return None


# --- the card with the buttons -------------------------------------------------------------------


@page
@require_safe
def version_retirement(request: PageRequest, name: str, number: int) -> HttpResponse:
    """Show the allowed actions and the uses of a version: a card, or without HTMX a page."""
    version = _version(name, number)
    needs = [] if version.is_deleted else needs_of_version(version, database_now())
    actions = [] if needs or version.is_deleted else list(ON_VERSION)
    loaded = version.deployments.filter(state__in=undeploying.LOADED)
    if "undeploy" in actions and not loaded.exists():
        actions.remove("undeploy")
    if version.is_archived and "archive" in actions:
        actions[actions.index("archive")] = "restore"
    urls = {a: reverse(f"version-{a}", args=[name, number]) for a in actions}
    return _card(request, version, version.model, needs, urls)


@page
@require_safe
def model_retirement(request: PageRequest, name: str) -> HttpResponse:
    """Show the allowed actions and the uses of a model."""
    model = get_object_or_404(RegisteredModel.objects.select_related("stable"), name=name)
    now = database_now()
    serves = model.stable is not None
    needs_of = needs_of_service if serves else needs_of_model
    needs = [] if model.is_deleted else needs_of(model, now)
    actions: list[str] = []
    if not needs and not model.is_deleted:
        archive = "restore" if model.is_archived else "archive"
        actions = ["undeploy"] if serves else [archive, "delete"]
    urls = {a: reverse(f"model-{a}", args=[name]) for a in actions}
    return _card(request, model, model, needs, urls)


def _card(
    request: PageRequest,
    subject: ModelVersion | RegisteredModel,
    model: RegisteredModel,
    needs: list[str],
    urls: dict[str, str],
) -> HttpResponse:
    actions = ON_MODEL if subject is model else ON_VERSION
    buttons = [
        Button(action, url)
        for action, url in urls.items()
        if has_role(
            request.user, model, actions[action].role if action in actions else Role.OPERATOR
        )
    ]
    context = {
        "subject": subject,
        "model": model,
        "is_model": subject is model,
        "needs": needs,
        "buttons": buttons,
    }
    template = "models/_retire.html" if request.htmx else "models/retire.html"
    return render(request, template, context)
