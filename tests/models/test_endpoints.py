"""Clusters of several endpoints: each is loaded, warmed up, repaired and named separately."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps.lib.actors import INTERLOCK
from apps.lib.clock import database_now
from apps.lib.errors import Unavailable
from apps.models import deployments
from apps.models.deployments import reconcile_deployments, unload_deployment
from apps.models.models import Deployment, ModelVersion, RegisteredModel, ServingCluster
from apps.models.repository import placed_backend
from apps.models.services import change_deployment, deploy_version
from apps.models.states import DeploymentState as State
from apps.models.triton import TritonRefused
from tests.models.onnx_zoo import KINDS, save

pytestmark = pytest.mark.django_db

NO_BACKEND = "Invalid argument: unable to find backend library for backend 'onnxruntime', try"


class Server:
    """A fake Triton endpoint, one of several, that fails on demand."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.loaded = False
        self.load_error: Exception | None = None
        self.answer_error: Exception | None = None
        self.calls: list[str] = []
        self.requests: list[Any] = []
        # Called before an unload, to let something happen meanwhile.
        self.before_unload: Callable[[], None] = lambda: None

    def load(self, version: ModelVersion) -> None:
        self.calls.append("load")
        if self.load_error:
            raise self.load_error
        self.loaded = True
        self.answer_error = None

    def unload(self, version: ModelVersion) -> None:
        self.calls.append("unload")
        self.loaded = False

    def is_unloaded(self, version: ModelVersion) -> bool:
        self.before_unload()
        return not self.loaded

    def answer(self, version: ModelVersion, request: Any = None) -> None:
        self.requests.append(request)
        if self.answer_error:
            raise self.answer_error


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> list[Server]:
    servers = [Server("http://one"), Server("http://two")]
    monkeypatch.setattr(deployments, "endpoints_of", lambda cluster: servers)
    return servers


@pytest.fixture
def row(tmp_path: Path) -> Deployment:
    path = save(KINDS["fixed"], tmp_path)
    cluster = ServingCluster.objects.create(
        name="two", endpoints=["http://one", "http://two"], is_default=True,
        repository_path=str(tmp_path / "repository"),
    )  # fmt: skip
    version = ModelVersion.objects.create(
        model=RegisteredModel.objects.create(name="m"), number=1, artifact_path=str(path),
        artifact_sha256="x", artifact_bytes=1, created_at=database_now(), batched=False,
        signature={"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4]}],
                   "outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 4]}]},
    )  # fmt: skip
    return Deployment.objects.create(version=version, cluster=cluster, changed_at=database_now())


def reconcile(row: Deployment) -> Deployment:
    Deployment.objects.update(leased_until=None)
    reconcile_deployments()
    row.refresh_from_db()
    return row


def test_it_is_loaded_and_warmed_on_every_endpoint(pair: list[Server], row: Deployment) -> None:
    assert reconcile(row).state == State.READY
    assert all(server.loaded and len(server.requests) == 3 for server in pair)


def test_an_unreachable_endpoint_is_named(pair: list[Server], row: Deployment) -> None:
    pair[0].load_error = Unavailable("http://one does not answer: refused")
    row = reconcile(row)
    assert (row.state, pair[1].loaded) == (State.LOADING, True)
    assert row.reason == "waiting to load: http://one does not answer: refused"
    pair[0].load_error = None
    assert reconcile(row).state == State.READY


def test_a_refusing_endpoint_is_named(pair: list[Server], row: Deployment) -> None:
    pair[1].load_error = TritonRefused("out of memory")
    row = reconcile(row)
    assert (row.state, row.reason) == (State.FAILED, "http://two: out of memory")


def test_a_cluster_without_endpoints_serves_nothing(pair: list[Server], row: Deployment) -> None:
    pair.clear()
    row = reconcile(row)
    assert (row.state, row.reason) == (
        State.LOADING,
        "waiting to load: the cluster has no endpoints",
    )


def test_only_the_endpoint_that_lost_it_is_reloaded(pair: list[Server], row: Deployment) -> None:
    reconcile(row)
    pair[0].calls, pair[1].calls = [], []
    pair[1].answer_error = TritonRefused("the stub died")
    row = reconcile(row)
    assert row.state == State.READY
    assert (pair[0].calls, pair[1].calls) == ([], ["unload", "load"])
    assert row.reason == "loaded again on http://two, which had lost it: the stub died"


def test_an_endpoint_that_cannot_be_repaired_does_not_stop_the_others(
    pair: list[Server], row: Deployment
) -> None:
    reconcile(row)
    pair[0].answer_error = TritonRefused("the stub died")
    pair[0].load_error = TritonRefused("no memory")
    row = reconcile(row)
    assert (row.state, pair[1].loaded) == (State.READY, True)
    assert "http://one lost it (the stub died): no memory" in row.reason
    pair[0].load_error = pair[0].answer_error = None
    assert reconcile(row).reason == "answers on every endpoint again"


def test_an_unreachable_endpoint_does_not_stop_probing_the_others(
    pair: list[Server], row: Deployment
) -> None:
    reconcile(row)
    pair[0].answer_error = Unavailable("http://one does not answer: away")
    pair[1].answer_error = TritonRefused("the stub died")
    assert reconcile(row).state == State.LOADING
    assert pair[1].calls[-1] == "unload"
    assert "unload" not in pair[0].calls


def test_a_version_is_probed_with_its_warm_up_request(pair: list[Server], row: Deployment) -> None:
    ModelVersion.objects.update(warmup=[[{"name": "x"}], [{"name": "y"}]])
    reconcile(row)
    reconcile(row)
    assert pair[0].requests == [[{"name": "x"}], [{"name": "y"}], [{"name": "x"}]]


def test_a_server_without_the_backend_makes_all_of_them_use_the_wrapper(
    pair: list[Server], row: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends = []

    def load(version: ModelVersion) -> None:
        backends.append(placed_backend(version, row.cluster))
        if backends[-1] == "onnxruntime":
            raise TritonRefused(NO_BACKEND)

    monkeypatch.setattr(pair[1], "load", load)
    assert reconcile(row).state == State.READY
    assert backends == ["onnxruntime", "python"]
    assert pair[0].calls == ["load", "load"]


def test_an_available_backend_is_used(pair: list[Server], row: Deployment) -> None:
    assert reconcile(row).state == State.READY
    config = Path(row.cluster.repository_path) / "m.1" / "config.pbtxt"
    assert 'backend: "onnxruntime"' in config.read_text()
    assert not (config.parent / "1" / "model.py").exists()


def test_a_deployment_placed_again_during_its_unload_stays(
    pair: list[Server], row: Deployment
) -> None:
    row = reconcile(row)
    change_deployment(row, State.DRAINING, "no longer needed", INTERLOCK, database_now())
    pair[0].before_unload = lambda: (
        deploy_version(version=row.version, actor=INTERLOCK, now=database_now()),
        None,
    )[1]
    assert not unload_deployment(row)
    assert all(server.loaded for server in pair)
    assert reconcile(row).state == State.READY


def test_unloading_waits_for_an_unreachable_endpoint_and_names_it(
    pair: list[Server], row: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(version: ModelVersion) -> None:
        raise Unavailable("http://one does not answer: away")

    row = reconcile(row)
    change_deployment(row, State.DRAINING, "no longer needed", INTERLOCK, database_now())
    monkeypatch.setattr(pair[0], "unload", away)
    assert not unload_deployment(row)
    row.refresh_from_db()
    assert (row.state, pair[1].loaded) == (State.DRAINING, False)
    assert row.reason == "waiting to unload: http://one does not answer: away"
