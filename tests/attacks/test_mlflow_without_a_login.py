"""An unauthenticated client of MLflow sets an alias there to start a rollout: refused.

The real server, as `./run up` starts it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from apps.models import mlflow
from embedded.stack import Stack, running

pytestmark = pytest.mark.e2e

READY_WITHIN_S = 240
API = "/api/2.0/mlflow"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("mlflow"), {"postgres", "mlflow"}) as stack:
        ends_at = time.monotonic() + READY_WITHIN_S
        while not is_up(stack.urls.mlflow):
            assert time.monotonic() < ends_at, "MLflow did not start"
            time.sleep(0.2)
        yield stack


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.HTTPError:
        return False


@pytest.fixture
def ours(stack: Stack, settings: Any) -> Stack:
    settings.MLFLOW_TRACKING_URI = stack.urls.mlflow
    settings.MLFLOW_TOKEN = ""
    settings.MLFLOW_LOGIN = (
        stack.env["MLFLOW_TRACKING_USERNAME"],
        stack.env["MLFLOW_TRACKING_PASSWORD"],
    )
    return stack


@pytest.mark.parametrize("login", [None, ("interlock", "password1234"), ("admin", "password")])
def test_an_unauthenticated_client_sets_no_alias(
    ours: Stack, login: tuple[str, str] | None
) -> None:
    body = {"name": "digits", "alias": "candidate", "version": "1"}
    with httpx.Client(base_url=f"{ours.urls.mlflow}{API}", auth=login) as client:
        answers = [
            client.post("/registered-models/alias", json=body),
            client.post("/registered-models/create", json={"name": "digits"}),
            client.get("/registered-models/search"),
            client.get("/../../2.0/mlflow-artifacts/artifacts"),
        ]
    assert {answer.status_code for answer in answers} == {401}


def test_the_control_plane_has_a_login(ours: Stack) -> None:
    assert not mlflow.is_open()
    with mlflow.connect() as client:
        assert list(client.models()) == []
