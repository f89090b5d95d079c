"""What MLflow has comes in once; one version that cannot be served keeps no other one out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from apps.lib.errors import Unavailable
from apps.models import registry
from apps.models.mlflow import ARTIFACTS, MlflowClient
from apps.models.models import Alias, ModelVersion, RefusedImport
from apps.models.registry import sync_registry
from tests.models.test_artifacts import ONNX_FLAVOUR, SIGNATURE, save

pytestmark = pytest.mark.django_db


class Mlflow:
    """Answers as a tracking server; `missing` are the versions whose files are gone."""

    def __init__(self, onnx: bytes) -> None:
        self.files = {"MLmodel": (ONNX_FLAVOUR + SIGNATURE).encode(), "model.onnx": onnx}
        self.numbers = [1, 2]
        self.missing: set[str] = set()
        self.aliases = [{"alias": "candidate", "version": "2"}]
        self.metrics: list[dict[str, Any]] = [{"key": "accuracy", "value": 0.9}]
        self.name = "digits"

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, asked = request.url.path, request.url.params
        if path.startswith(f"{ARTIFACTS}/"):
            return httpx.Response(200, content=self.files[path.rsplit("/", 1)[1]])
        if path.endswith("get-download-uri") and asked["version"] in self.missing:
            return httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST"})
        return httpx.Response(200, json=self.answers()[path.rsplit("/mlflow", 1)[1]])

    def answers(self) -> dict[str, Any]:
        model = {"name": self.name, "description": "told", "aliases": self.aliases}
        versions = [
            {"name": self.name, "version": str(n), "run_id": "r", "creation_timestamp": 1_000}
            for n in self.numbers
        ]
        return {
            "/registered-models/search": {"registered_models": [model]},
            "/model-versions/search": {"model_versions": versions},
            "/runs/get": {"run": {"data": {"metrics": self.metrics}}},
            "/model-versions/get-download-uri": {"artifact_uri": "mlflow-artifacts:/1/m"},
            "-artifacts/artifacts": {"files": [{"path": name} for name in self.files]},
        }


def client_of(handler: Callable[[httpx.Request], httpx.Response]) -> MlflowClient:
    client = MlflowClient("http://mlflow")
    client._http.close()
    transport = httpx.MockTransport(handler)
    client._http = httpx.Client(base_url="http://mlflow", transport=transport)
    return client


@pytest.fixture
def mlflow(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    settings.ARTIFACT_DIR = tmp_path / "artifacts"
    server = Mlflow(save(tmp_path / "m.onnx", ["N", 4]).read_bytes())
    monkeypatch.setattr(registry, "connect", lambda: client_of(server))
    return server


def test_versions_come_in_once_with_what_is_known_of_them(mlflow: Mlflow) -> None:
    assert sync_registry().imported == ("digits:1", "digits:2")
    assert sync_registry().imported == ()
    version = ModelVersion.objects.get(number=2)
    assert version.signature["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert (version.metrics, version.model.description) == ({"accuracy": 0.9}, "told")
    assert Path(version.artifact_path).read_bytes() == mlflow.files["model.onnx"]


def test_aliases_follow_but_champion_is_ours(mlflow: Mlflow) -> None:
    mlflow.aliases.append({"alias": "champion", "version": "2"})
    sync_registry()
    mlflow.aliases[0]["version"] = "1"
    assert sync_registry().aliases == 1
    assert [(a.name, a.version.number) for a in Alias.objects.all()] == [("candidate", 1)]
    mlflow.aliases = []
    sync_registry()
    assert not Alias.objects.exists()


def test_a_version_without_onnx_is_refused_once_with_the_reason(mlflow: Mlflow) -> None:
    mlflow.files["MLmodel"] = b"flavors:\n  sklearn: {}\n"
    assert sync_registry().refused == ("digits:1", "digits:2")
    assert sync_registry().refused == ()
    assert "no ONNX flavour (it has: sklearn)" in RefusedImport.objects.all()[0].reason


def test_a_version_whose_files_are_gone_keeps_no_other_one_out(mlflow: Mlflow) -> None:
    mlflow.missing = {"1"}
    report = sync_registry()
    assert (report.refused, report.imported) == (("digits:1",), ("digits:2",))


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_a_metric_that_is_no_number_is_left_out(mlflow: Mlflow, value: str) -> None:
    mlflow.metrics.append({"key": "loss", "value": value})
    sync_registry()
    assert ModelVersion.objects.get(number=1).metrics == {"accuracy": 0.9}


def test_a_name_that_cannot_stand_in_a_url_is_refused(mlflow: Mlflow) -> None:
    mlflow.name = "two words"
    assert sync_registry().refused == ("two words:1", "two words:2")


def test_an_artifact_beyond_the_limit_is_refused(mlflow: Mlflow, settings: Any) -> None:
    settings.ARTIFACT_BYTES_MAX = 100
    assert sync_registry().imported == ()
    assert "larger than the limit" in RefusedImport.objects.all()[0].reason


@pytest.mark.parametrize(
    "answer", [httpx.Response(503, text="busy"), httpx.Response(200, text="<html>")]
)
def test_a_registry_that_does_not_answer_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, answer: httpx.Response
) -> None:
    monkeypatch.setattr(registry, "connect", lambda: client_of(lambda request: answer))
    with pytest.raises(Unavailable, match="MLflow answered"):
        sync_registry()


def test_warm_up_requests_come_in_with_the_version(mlflow: Mlflow) -> None:
    request = [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0.5] * 4}]
    mlflow.files["warmup.json"] = json.dumps([request]).encode()
    sync_registry()
    assert ModelVersion.objects.get(number=1).warmup == [request]


def test_a_version_whose_warm_up_is_too_large_is_refused(mlflow: Mlflow) -> None:
    request = [{"name": "x", "datatype": "FP32", "shape": [9_000, 4], "data": [0.5] * 36_000}]
    mlflow.files["warmup.json"] = json.dumps([request]).encode()
    assert sync_registry().imported == ()
    assert "at most 65,536" in RefusedImport.objects.all()[0].reason
