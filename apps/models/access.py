"""Roles on models: a viewer reads, an operator moves traffic, an admin configures."""

from __future__ import annotations

from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Q
from django.http import HttpRequest

from apps.lib.actors import INTERLOCK, Actor
from apps.lib.errors import Forbidden
from apps.models.models import ModelRole, RegisteredModel, Role

RANK = {Role.VIEWER: 0, Role.OPERATOR: 1, Role.ADMIN: 2}


def has_role(
    user: AbstractBaseUser | AnonymousUser, model: RegisteredModel | None, role: Role
) -> bool:
    """Return whether `user` has `role` or a higher one on `model` (None: on all models).

    Every active user may read; superusers may do everything.
    """
    if not isinstance(user, User) or not user.is_active:
        return False
    if user.is_superuser or role is Role.VIEWER:
        return True
    scope = Q(model=None) if model is None else Q(model=None) | Q(model=model)
    held = ModelRole.objects.filter(scope, user=user).values_list("role", flat=True)
    return any(RANK[Role(name)] >= RANK[role] for name in held)


def actor_has_role(actor: Actor, model: RegisteredModel | None, role: Role) -> bool:
    """Return whether `actor` has `role` on `model`; for services, which have no request.

    Interlock itself may do everything; an actor without an active user may do nothing.
    """
    if actor == INTERLOCK:
        return True
    user = User.objects.filter(username=actor.name).first()
    return user is not None and has_role(user, model, role)


def require_role(
    user: AbstractBaseUser | AnonymousUser, model: RegisteredModel | None, role: Role
) -> None:
    """Raise Forbidden unless `has_role`."""
    if not has_role(user, model, role):
        on = f"on model {model.name}" if model is not None else "on all models"
        raise Forbidden(f"This needs the role {role.value} {on}.")


def actor_of(request: HttpRequest) -> Actor:
    """Return the user and the IP address of a request as an actor."""
    return Actor(request.user.get_username() or "anonymous", request.META.get("REMOTE_ADDR", ""))
