"""Reconciling deployments with servers: loading, failures, repair, waiting, and reasons."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.lib.errors import Conflict, Unavailable
from apps.models import deployments, services
from apps.models.deployments import reconcile_deployments, unload_deployment
from apps.models.models import Deployment, ModelVersion
from apps.models.states import DeploymentState as State
from apps.models.triton import Endpoint, TritonRefused
from tests.rollouts.factories import ANNA, make_model

pytestmark = pytest.mark.django_db


class Server:
    """A fake Triton endpoint: records loaded versions, and fails on demand."""

    def __init__(self) -> None:
        self.loaded: set[int] = set()
        self.load_error: Exception | None = None
        self.answer_error: Exception | None = None
        self.requests: list[Any] = []

    def load(self, version: ModelVersion) -> None:
        if self.load_error:
            raise self.load_error
        self.loaded.add(version.pk)

    def unload(self, version: ModelVersion) -> None:
        self.loaded.discard(version.pk)

    def is_unloaded(self, version: ModelVersion) -> bool:
        return version.pk not in self.loaded

    @property
    def answers(self) -> int:
        return len(self.requests)

    def answer(self, version: ModelVersion, request: Any = None) -> None:
        self.requests.append(request)
        if self.answer_error:
            raise self.answer_error


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(deployments, "endpoints_of", lambda cluster: [server])
    return server


def deployment(tmp_path: Path, state: str = State.LOADING) -> Deployment:
    """Return the only deployment of a model with an artifact file."""
    artifact = tmp_path / "model.onnx"
    artifact.write_bytes(b"onnx")
    row = make_model(versions=1).versions.get().deployments.get()
    row.version.artifact_path = str(artifact)
    row.version.save()
    row.cluster.repository_path = str(tmp_path / "repository")
    row.cluster.save()
    Deployment.objects.update(state=state)
    row.refresh_from_db()
    return row


def reconcile(row: Deployment) -> Deployment:
    reconcile_deployments()
    row.refresh_from_db()
    return row


def test_a_version_is_ready_after_it_answered_real_requests(tmp_path: Path, server: Server) -> None:
    row = reconcile(deployment(tmp_path))
    assert (row.state, server.answers) == (State.READY, deployments.WARMUP_REQUESTS)
    assert (tmp_path / "repository/digits.1/config.pbtxt").exists()
    assert [event.to_state for event in row.events.all()] == [State.WARMING, State.READY]


def test_a_refused_load_fails_with_tritons_message(tmp_path: Path, server: Server) -> None:
    server.load_error = TritonRefused("unsupported opset 99")
    row = reconcile(deployment(tmp_path))
    assert (row.state, row.reason) == (State.FAILED, "unsupported opset 99")


def test_a_failed_warm_up_fails_the_deployment(tmp_path: Path, server: Server) -> None:
    server.answer_error = TritonRefused("no such output")
    row = reconcile(deployment(tmp_path))
    assert (row.state, row.reason) == (State.FAILED, "warm-up failed: no such output")


def test_an_unreachable_server_is_waited_for(tmp_path: Path, server: Server) -> None:
    server.load_error = Unavailable("refused connection")
    row = reconcile(deployment(tmp_path))
    assert row.state == State.LOADING
    assert "waiting to load: refused connection" in row.reason
    assert row.leased_until is not None


def test_a_ready_version_that_stopped_answering_is_loaded_again(
    tmp_path: Path, server: Server
) -> None:
    row = deployment(tmp_path, State.READY)
    server.loaded.add(row.version_id)
    server.answer_error = TritonRefused("the stub died")
    assert reconcile(row).state == State.LOADING
    assert not server.loaded
    server.answer_error = None
    assert reconcile(row).state == State.READY


def test_a_ready_version_stays_ready_while_its_server_is_down(
    tmp_path: Path, server: Server
) -> None:
    server.answer_error = Unavailable("away")
    row = reconcile(deployment(tmp_path, State.READY))
    assert row.state == State.READY
    assert "cannot be probed" in row.reason


def test_a_leased_deployment_is_skipped(tmp_path: Path, server: Server) -> None:
    row = deployment(tmp_path)
    Deployment.objects.update(leased_until=database_now() + timedelta(minutes=1))
    assert reconcile_deployments() == 0
    Deployment.objects.update(leased_until=database_now() - timedelta(seconds=1))
    assert reconcile(row).state == State.READY


def test_a_drained_version_is_unloaded_and_its_directory_removed(
    tmp_path: Path, server: Server
) -> None:
    row = reconcile(deployment(tmp_path))
    services.change_deployment(row, State.DRAINING, "no longer needed", ANNA, database_now())
    assert unload_deployment(row)
    assert row.state == State.ABSENT
    assert not server.loaded
    assert not (tmp_path / "repository/digits.1").exists()


def test_only_a_failed_deployment_can_be_retried(tmp_path: Path) -> None:
    row = deployment(tmp_path, State.READY)
    with pytest.raises(Conflict, match="only a failed one"):
        services.retry_deployment(deployment=row, actor=ANNA, now=database_now())


@pytest.mark.parametrize("state", [State.ABSENT, State.FAILED, State.DRAINING])
def test_deploying_an_unloaded_version_loads_it_again(tmp_path: Path, state: str) -> None:
    row = deployment(tmp_path, state)
    again = services.deploy_version(version=row.version, actor=ANNA, now=database_now())
    assert (again.pk, again.state) == (row.pk, State.LOADING)


def test_deploying_a_ready_version_changes_nothing(tmp_path: Path) -> None:
    row = deployment(tmp_path, State.READY)
    services.deploy_version(version=row.version, actor=ANNA, now=database_now())
    again = Deployment.objects.get()
    assert (again.state, again.revision) == (State.READY, row.revision)


def test_a_version_with_warm_up_requests_answers_those(tmp_path: Path, server: Server) -> None:
    row = deployment(tmp_path)
    request = [{"name": "pixels"}]
    ModelVersion.objects.update(warmup=[request])
    reconcile_deployments()
    row.refresh_from_db()
    assert (row.state, server.requests) == (State.READY, [request])


def place_again(row: Deployment, ago_s: float) -> None:
    """Move the deployment's start into the past and make it due."""
    at = database_now() - timedelta(seconds=ago_s)
    services._append_event(row, "", State.LOADING, "placed", ANNA, at)
    Deployment.objects.update(leased_until=None)


@pytest.mark.parametrize("state", [State.LOADING, State.WARMING])
def test_a_version_that_is_never_ready_is_given_up(
    tmp_path: Path, server: Server, settings: Any, state: State
) -> None:
    settings.DEPLOY_WITHIN_S = 60
    server.load_error = server.answer_error = Unavailable("it answers nothing")
    row = deployment(tmp_path, state)
    row.events.all().delete()
    place_again(row, 30)
    assert reconcile(row).state == state
    row.events.all().delete()
    place_again(row, 61)
    row = reconcile(row)
    assert row.state == State.FAILED
    assert "not ready within 60 s" in row.reason
    assert "it answers nothing" in row.reason


def test_a_version_that_was_ready_has_no_deadline(
    tmp_path: Path, server: Server, settings: Any
) -> None:
    settings.DEPLOY_WITHIN_S = 60
    server.load_error = Unavailable("its server is away")
    row = deployment(tmp_path)
    place_again(row, 3_600)
    services._append_event(row, State.WARMING, State.READY, "ready", ANNA, database_now())
    assert reconcile(row).state == State.LOADING
    server.load_error = None
    Deployment.objects.update(leased_until=None)
    assert reconcile(row).state == State.READY


def test_an_unexpected_error_is_shown_and_does_not_block_other_endpoints(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Endpoint(url="http://[")
    monkeypatch.setattr(deployments, "endpoints_of", lambda cluster: [broken, server])
    row = reconcile(deployment(tmp_path))
    assert server.loaded == {row.version_id}
    assert row.state == State.LOADING
    assert "http://[: " in row.reason
