"""Servers that take commands from strangers: what is asked, what is kept, what waits for it."""

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
    """Answers everything with one status, and keeps what it was asked."""

    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def mlflow(server: Server, settings: Any) -> Server:
    settings.MLFLOW_TRACKING_URI = server.url.replace("http://", "http://ann:secret@")
    settings.MLFLOW_LOGIN = ("ann", "secret")
    return server


@pytest.fixture
def candidate() -> RegisteredModel:
    """A model whose version 2 has just been named."""
    make_plan("careful")
    model = make_model()
    change_settings(model=model, candidate_plan="careful", actor=ANNA, now=database_now())
    Alias.objects.create(model=model, name="candidate", version=model.versions.get(number=2))
    return model


@pytest.mark.parametrize(("status", "is_open"), [(200, True), (401, False), (403, False)])
def test_mlflow_is_asked_as_a_stranger(mlflow: Server, status: int, is_open: bool) -> None:
    mlflow.status = status
    check_services()
    row = ServiceCheck.objects.get()
    assert (row.address, row.is_open) == (mlflow.url, is_open)
    assert [authorization for _, authorization in mlflow.asked] == [None]


def test_nobody_knows_of_one_that_does_not_answer(settings: Any) -> None:
    settings.MLFLOW_TRACKING_URI = ""
    ServingCluster.objects.create(name="a", endpoints=["http://127.0.0.1:1"], repository_path="/r")
    check_services()
    row = ServiceCheck.objects.get()
    assert (row.is_open, bool(row.trouble)) == (False, True)


def test_one_that_is_asked_no_more_is_forgotten(settings: Any) -> None:
    settings.MLFLOW_TRACKING_URI = ""
    then = database_now() - timedelta(hours=1)
    ServiceCheck.objects.create(address="a", kind="triton", is_open=True, checked_at=then)
    assert open_services(database_now()) == []
    check_services()
    assert not ServiceCheck.objects.exists()


def test_a_candidate_waits_while_mlflow_takes_it_from_anybody(
    mlflow: Server, candidate: RegisteredModel, settings: Any
) -> None:
    settings.MLFLOW_LOGIN_REQUIRED = True
    assert start_candidates() == 0
    mlflow.status = 503
    assert start_candidates() == 0
    mlflow.status = 401
    assert start_candidates() == 1


def test_nobody_is_asked_where_it_is_not_demanded(
    mlflow: Server, candidate: RegisteredModel
) -> None:
    assert (start_candidates(), mlflow.asked) == (1, [])
