"""Deployments on a real Triton: backends, instances, failures and their reasons.

This Triton has the Python backend only, as NVIDIA's wheel brings it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest
import tritonclient.http as by_http

from apps.lib.actors import Actor
from apps.lib.clock import database_now
from apps.models import inspection
from apps.models.artifacts import DATA_FILE, inspect_onnx
from apps.models.deployments import reconcile_deployments, unload_deployment
from apps.models.models import Deployment, ModelVersion, RegisteredModel, ServingCluster
from apps.models.repository import WITHOUT_ONNXRUNTIME, triton_name
from apps.models.services import change_deployment
from apps.models.states import DeploymentState as State
from apps.models.triton import endpoints_of
from embedded.ports import is_free
from embedded.stack import running
from tests.models.onnx_zoo import KINDS, Kind, directly_asked, large, save

pytestmark = pytest.mark.django_db

ANNA = Actor("anna", "test")


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    state = tmp_path_factory.mktemp("triton")
    with running(state, {"triton"}) as stack:
        yield stack


@pytest.fixture
def cluster(triton: Any) -> ServingCluster:
    repository = Path(triton.state_dir) / "triton" / "repository"
    (repository / WITHOUT_ONNXRUNTIME).unlink(missing_ok=True)
    return ServingCluster.objects.create(
        name="real", endpoints=[triton.urls.triton], repository_path=str(repository)
    )


def place(cluster: ServingCluster, name: str, path: Path, **fields: Any) -> Deployment:
    """Create a version of the file, and its deployment."""
    document = inspection.inspect(path)
    version = ModelVersion.objects.create(
        model=RegisteredModel.objects.get_or_create(name=name, defaults=fields)[0],
        number=1,
        signature=document["signature"],
        batched=document["batched"],
        warmup=document["warmup"],
        artifact_path=str(path),
        artifact_sha256=name,
        artifact_bytes=path.stat().st_size,
        created_at=database_now(),
    )
    return Deployment.objects.create(version=version, cluster=cluster, changed_at=database_now())


def reconcile(row: Deployment) -> Deployment:
    Deployment.objects.update(leased_until=None)
    reconcile_deployments()
    row.refresh_from_db()
    return row


def config_of(row: Deployment) -> Any:
    url = row.cluster.endpoints[0]
    return httpx.get(f"{url}/v2/models/{triton_name(row.version)}/config").json()


def answer(row: Deployment, kind: Kind) -> Any:
    host = row.cluster.endpoints[0].removeprefix("http://")
    inputs = []
    for name, array in kind.inputs.items():
        item = by_http.InferInput(
            name, list(array.shape), "INT64" if array.dtype == int else "FP32"
        )
        item.set_data_from_numpy(array)
        inputs.append(item)
    with by_http.InferenceServerClient(host) as client:
        return client.infer(triton_name(row.version), inputs).as_numpy("y")


def test_without_the_onnx_runtime_backend_the_wrapper_serves_and_this_is_recorded(
    tmp_path: Path, cluster: ServingCluster, settings: Any
) -> None:
    settings.TRITON_BACKEND = "auto"
    row = reconcile(place(cluster, "auto", save(KINDS["two-and-two"], tmp_path)))
    assert (row.state, config_of(row)["backend"]) == (State.READY, "python")
    record = (Path(cluster.repository_path) / WITHOUT_ONNXRUNTIME).read_text()
    assert "unable to find backend library for backend 'onnxruntime'" in record


def test_a_required_but_missing_backend_is_reported(
    tmp_path: Path, cluster: ServingCluster, settings: Any
) -> None:
    settings.TRITON_BACKEND = "onnxruntime"
    row = reconcile(place(cluster, "insists", save(KINDS["fixed"], tmp_path)))
    assert row.state == State.FAILED
    assert "unable to find backend library for backend 'onnxruntime'" in row.reason


def test_instances_and_batch_size_apply_to_loaded_versions(
    tmp_path: Path, cluster: ServingCluster, settings: Any
) -> None:
    row = reconcile(place(cluster, "many", save(KINDS["vector"], tmp_path), max_batch_size=4))
    assert config_of(row)["instance_group"][0]["count"] == 1
    settings.TRITON_INSTANCES = 2
    RegisteredModel.objects.update(max_batch_size=16)
    row = reconcile(row)
    assert (row.state, row.reason) == (State.READY, "loaded with its changed configuration")
    config = config_of(row)
    assert (config["instance_group"][0]["count"], config["max_batch_size"]) == (2, 16)
    assert config["model_warmup"][0]["name"] == "zeros"
    assert reconcile(row).reason == "loaded with its changed configuration"


def test_a_failed_load_has_tritons_reason(tmp_path: Path, cluster: ServingCluster) -> None:
    row = place(cluster, "broken", save(KINDS["fixed"], tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"no model")
    row = reconcile(row)
    assert row.state == State.FAILED
    assert "Protobuf parsing failed" in row.reason


def test_an_unreachable_endpoint_is_waited_for_and_named(
    tmp_path: Path, cluster: ServingCluster
) -> None:
    away = f"http://127.0.0.1:{next(p for p in range(40_000, 50_000) if is_free(p))}"
    cluster.endpoints = [away, *cluster.endpoints]
    cluster.save()
    row = reconcile(place(cluster, "waits", save(KINDS["vector"], tmp_path)))
    assert row.state == State.LOADING
    assert row.reason.startswith(f"waiting to load: {away} does not answer")
    cluster.endpoints = cluster.endpoints[1:]
    cluster.save()
    assert reconcile(Deployment.objects.get(pk=row.pk)).state == State.READY


def test_a_lost_version_is_loaded_again(tmp_path: Path, cluster: ServingCluster) -> None:
    row = reconcile(place(cluster, "lost", save(KINDS["vector"], tmp_path)))
    (endpoint,) = endpoints_of(cluster)
    endpoint.unload(row.version)
    while not endpoint.is_unloaded(row.version):
        pass
    assert reconcile(row).state == State.LOADING
    assert reconcile(row).state == State.READY


def test_a_drained_version_is_gone_from_server_and_repository(
    tmp_path: Path, cluster: ServingCluster
) -> None:
    row = reconcile(place(cluster, "drained", save(KINDS["vector"], tmp_path)))
    change_deployment(row, State.DRAINING, "no longer needed", ANNA, database_now())
    while not unload_deployment(row):
        pass
    assert row.state == State.ABSENT
    assert not (Path(cluster.repository_path) / "drained.1").exists()


def test_a_model_of_120_megabytes_is_served(tmp_path: Path, cluster: ServingCluster) -> None:
    kind = large()
    path = save(kind, tmp_path)
    assert inspect_onnx(path).size_bytes > 100 * 1024**2
    row = reconcile(place(cluster, "large", path))
    assert row.state == State.READY, row.reason
    assert (answer(row, kind) == directly_asked(kind)).all()
    assert path.stat().st_nlink == 2


def test_weights_in_a_separate_file_are_served(
    tmp_path: Path, cluster: ServingCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, path = large(rows=2_000), tmp_path / "model.onnx"
    expected = directly_asked(kind)
    onnx.save(kind.model, str(path), save_as_external_data=True, location="weights.bin")
    monkeypatch.setattr(inspection, "ONNX_BYTES_MAX", 100_000)
    row = place(cluster, "beside", path)
    (tmp_path / "weights.bin").unlink()
    row = reconcile(row)
    assert row.state == State.READY, row.reason
    assert (Path(cluster.repository_path) / "beside.1" / "1" / DATA_FILE).exists()
    assert (answer(row, kind) == expected).all()
