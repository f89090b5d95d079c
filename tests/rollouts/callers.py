"""Callers of the REST API, each with a token of a user with a role, and the text of pages."""

from __future__ import annotations

import re
from typing import Any

from django.contrib.auth.models import User
from django.test import Client

from apps.models.models import ModelRole, RegisteredModel
from controlplane.models import ApiToken

NAMES = {"admin": "eve", "operator": "bob", None: "carl"}
# Elements whose text keeps its whitespace, and those around which whitespace is not rendered.
VERBATIM = re.compile(r"(<(textarea|pre|script)\b.*?</\2>)", re.DOTALL)
BLOCK = re.compile(
    r"\s*(</?(?:div|p|section|form|ul|ol|li|dl|dt|dd|table|thead|tbody|tr|t[dh]|h[1-3]|details"
    r"|summary|option|progress|br)\b[^>]*>)\s*"
)


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


def rendered(response: Any) -> str:
    """Return the page with whitespace as a browser renders it: collapsed, none at block edges."""
    parts = VERBATIM.split(response.content.decode())
    # Each match adds two parts: the element, and its name.
    return "".join(
        BLOCK.sub(r"\1", re.sub(r"\s+", " ", part)) if number % 3 == 0 else part
        for number, part in enumerate(parts)
        if number % 3 != 2
    )
