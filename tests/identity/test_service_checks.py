"""Checks for servers that accept commands without authentication, and their consequences."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from apps.identity.models import ServiceCheck
from apps.identity.service_checks import check_services, open_services
from apps.lib.clock import database_now
from apps.models.models import Alias, RegisteredModel, ServingCluster
from apps.rollouts.candidates import start_candidates
from apps.rollouts.serving_policies import change_settings
from tests.rollouts.factories import ANNA, make_model, make_plan

pytestmark = pytest.mark.django_db


class Server(ThreadingHTTPServer):
    """Answers every request with one status and records the requests."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Authorization")))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def mlflow(server: Server, settings: Any) -> Server:
    settings.MLFLOW_TRACKING_URI = server.url.replace("http://", "http://ann:secret@")
    settings.MLFLOW_LOGIN = ("ann", "secret")
    return server


@pytest.fixture
def candidate() -> RegisteredModel:
    """A model whose version 2 was just named `candidate`."""
    make_plan("careful")
    model = make_model()
    change_settings(model=model, candidate_plan="careful", actor=ANNA, now=database_now())
    Alias.objects.create(model=model, name="candidate", version=model.versions.get(number=2))
    return model


@pytest.mark.parametrize(("status", "is_open"), [(200, True), (401, False), (403, False)])
def test_mlflow_is_queried_without_credentials(mlflow: Server, status: int, is_open: bool) -> None:
    mlflow.status = status
    check_services()
    row = ServiceCheck.objects.get()
    assert (row.address, row.is_open) == (mlflow.url, is_open)
    assert [authorization for _, authorization in mlflow.requests] == [None]


def test_a_server_that_does_not_answer_is_in_trouble(settings: Any) -> None:
    settings.MLFLOW_TRACKING_URI = ""
    ServingCluster.objects.create(name="a", endpoints=["http://127.0.0.1:1"], repository_path="/r")
    check_services()
    row = ServiceCheck.objects.get()
    assert (row.is_open, bool(row.trouble)) == (False, True)


def test_a_server_that_is_not_checked_any_more_is_deleted(settings: Any) -> None:
    settings.MLFLOW_TRACKING_URI = ""
    then = database_now() - timedelta(hours=1)
    ServiceCheck.objects.create(address="a", kind="triton", is_open=True, checked_at=then)
    assert open_services(database_now()) == []
    check_services()
    assert not ServiceCheck.objects.exists()


def test_a_candidate_waits_while_mlflow_is_open(
    mlflow: Server, candidate: RegisteredModel, settings: Any
) -> None:
    settings.MLFLOW_LOGIN_REQUIRED = True
    assert start_candidates() == 0
    mlflow.status = 503
    assert start_candidates() == 0
    mlflow.status = 401
    assert start_candidates() == 1


def test_mlflow_is_not_queried_unless_a_login_is_required(
    mlflow: Server, candidate: RegisteredModel
) -> None:
    assert (start_candidates(), mlflow.requests) == (1, [])
