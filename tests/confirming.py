"""How a person gets past a question of the server: by the form that its answer brings."""

from __future__ import annotations

import re
from typing import Any

from django.test import Client

TOKEN = re.compile(r'name="confirmed" value="([0-9a-f]+)"')


def question_of(client: Client, path: str, form: dict[str, Any] | None = None, **more: Any) -> str:
    """Return the page that asks, after having made sure that it does."""
    text = client.post(path, form or {}, **more).content.decode()
    assert TOKEN.search(text), f"{path} asked nothing: {text[:2_000]}"
    return text


def post_yes(client: Client, path: str, form: dict[str, Any] | None = None, **more: Any) -> Any:
    """Post the form, be asked, and say yes; return the answer to that."""
    found = TOKEN.search(question_of(client, path, form, **more))
    assert found is not None
    return client.post(path, {**(form or {}), "confirmed": found[1]}, **more)
