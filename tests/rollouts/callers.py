"""Callers of the REST API, each with a token of a user who holds a role on all models."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.test import Client

from apps.models.models import ModelRole, RegisteredModel
from controlplane.models import ApiToken

NAMES = {"admin": "eve", "operator": "bob", None: "carl"}


def caller(
    role: str | None = "operator", name: str = "", model: RegisteredModel | None = None
) -> Client:
    """Return a client whose user has `role` on `model` (None: on all)."""
    user = User.objects.create_user(name or NAMES[role])
    if role:
        ModelRole.objects.create(user=user, role=role, model=model)
    _, secret = ApiToken.issue(user_id=user.pk, name="ci")
    return Client(headers={"Authorization": f"Bearer {secret}"})


def send_json(client: Client, path: str, body: Any, method: str = "post") -> Any:
    return getattr(client, method)(path, body, content_type="application/json")
