"""An address with a null character is refused before anything is looked up by it."""

from __future__ import annotations

import pytest
from django.test import Client


@pytest.mark.parametrize(
    "path", ["/api/v1/plans/%00/", "/api/v1/rollouts/?model=a%00b", "/models/a%00b/"]
)
def test_a_null_character_is_refused(path: str) -> None:
    answer = Client().get(path)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid"


def test_other_escapes_are_not() -> None:
    assert Client().get("/healthz/live?model=a%20b").status_code == 200
