"""Health needs no login; readiness depends on the database."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client

from controlplane import health


def test_liveness_uses_no_service(client: Client) -> None:
    assert client.get("/healthz/live").json() == {"live": True}


@pytest.mark.django_db
def test_ready_when_the_database_answers(client: Client) -> None:
    assert client.get("/healthz/ready").json()["ready"] is True


def test_not_ready_when_the_database_is_away(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away:
        def cursor(self) -> Any:
            raise OperationalError("refused")

    monkeypatch.setattr(health, "connection", Away())
    response = client.get("/healthz/ready")
    assert (response.status_code, response.json()["ready"]) == (503, False)
    assert "refused" in response.json()["reason"]
