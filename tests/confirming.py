"""Helpers that confirm an action with the form in the server's response."""

from __future__ import annotations

import re
from typing import Any

from django.test import Client

TOKEN = re.compile(r'name="confirmed" value="([0-9a-f]+)"')


def question_of(client: Client, path: str, form: dict[str, Any] | None = None, **more: Any) -> str:
    """Return the page with the question; fail if there is none."""
    text = client.post(path, form or {}, **more).content.decode()
    assert TOKEN.search(text), f"{path} asked nothing: {text[:2_000]}"
    return text


def post_yes(client: Client, path: str, form: dict[str, Any] | None = None, **more: Any) -> Any:
    """Post the form and confirm the question; return the response to the confirmation."""
    token = TOKEN.search(question_of(client, path, form, **more))
    assert token is not None
    return client.post(path, {**(form or {}), "confirmed": token[1]}, **more)
