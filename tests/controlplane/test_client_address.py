"""A URL with a null character is refused before any lookup."""

from __future__ import annotations

import pytest
from django.test import Client


@pytest.mark.parametrize(
    "path", ["/api/v1/plans/%00/", "/api/v1/rollouts/?model=a%00b", "/models/a%00b/"]
)
def test_a_null_character_is_refused(path: str) -> None:
    response = Client().get(path)

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid"


def test_other_escapes_are_accepted() -> None:
    assert Client().get("/healthz/live?model=a%20b").status_code == 200
