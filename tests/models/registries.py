"""A fake MLflow registry for tests: its REST API with state."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx

from apps.models.mlflow import ARTIFACTS, MlflowClient
from tests.models.test_artifacts import ONNX_FLAVOUR, SIGNATURE

WEBHOOK_SECRET = "shared-with-mlflow"


class Mlflow:
    """Answers like a tracking server; `missing` are versions without files."""

    def __init__(self, onnx: bytes) -> None:
        self.files = {"MLmodel": (ONNX_FLAVOUR + SIGNATURE).encode(), "model.onnx": onnx}
        self.numbers = [1, 2]
        self.missing: set[str] = set()
        # Versions whose files the artifact store cannot return now.
        self.broken: set[str] = set()
        self.aliases = [{"alias": "candidate", "version": "2"}]
        self.metrics: list[dict[str, Any]] = [{"key": "accuracy", "value": 0.9}]
        self.name = "digits"
        self.is_away = False
        # The writes: method, alias, version.
        self.written: list[tuple[str, str, str]] = []
        # Called before each response, with the path.
        self.before: Callable[[str], None] = lambda path: None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, query = request.url.path, request.url.params
        self.before(path)
        if self.is_away:
            raise httpx.ConnectError("refused", request=request)
        if request.method in {"POST", "DELETE"}:
            return self.write(request.method, json.loads(request.content))
        if path.startswith(f"{ARTIFACTS}/"):
            return httpx.Response(200, content=self.files[path.rsplit("/", 1)[1]])
        if path.endswith("get-download-uri") and query["version"] in self.broken:
            return httpx.Response(500, text="the bucket is away")
        if path.endswith("get-download-uri") and query["version"] in self.missing:
            return httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST"})
        if path.endswith("/model-versions/get"):
            return self.one(query["version"])
        return httpx.Response(200, json=self.answers()[path.rsplit("/mlflow", 1)[1]])

    def one(self, number: str) -> httpx.Response:
        matches = [v for v in self.versions() if v["version"] == number]
        if not matches:
            return httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST"})
        return httpx.Response(200, json={"model_version": matches[0]})

    def write(self, method: str, body: dict[str, str]) -> httpx.Response:
        alias, version = body["alias"], body.get("version", "")
        self.written.append((method, alias, version))
        if method == "POST" and int(version) not in self.numbers:
            return httpx.Response(404, json={"error_code": "RESOURCE_DOES_NOT_EXIST"})
        self.name_alias(alias, version)
        return httpx.Response(200, json={})

    def name_alias(self, alias: str, version: str) -> None:
        """Set an alias as a user does; an empty version deletes it."""
        self.aliases = [item for item in self.aliases if item["alias"] != alias]
        if version:
            self.aliases.append({"alias": alias, "version": version})

    def names(self) -> dict[str, int]:
        return {item["alias"]: int(item["version"]) for item in self.aliases}

    def versions(self) -> list[dict[str, Any]]:
        return [
            {"name": self.name, "version": str(n), "run_id": "r", "creation_timestamp": 1_000}
            for n in self.numbers
        ]

    def answers(self) -> dict[str, Any]:
        model = {"name": self.name, "description": "of digits", "aliases": self.aliases}
        run = {
            "info": {"user_id": "dora", "artifact_uri": "mlflow-artifacts:/1/r/artifacts"},
            "data": {"metrics": self.metrics},
            "outputs": {"model_outputs": [{"model_id": "m-1"}]},
        }
        logged = {"name": "net", "source_run_id": "r", "artifact_uri": "mlflow-artifacts:/1/m-1"}
        return {
            "/registered-models/search": {"registered_models": [model]},
            "/model-versions/search": {"model_versions": self.versions()},
            "/runs/get": {"run": run},
            "/logged-models/m-1": {"model": {"info": logged}},
            "/model-versions/get-download-uri": {"artifact_uri": "mlflow-artifacts:/1/m"},
            "-artifacts/artifacts": {"files": [{"path": name} for name in self.files]},
        }


def client_of(handler: Callable[[httpx.Request], httpx.Response]) -> MlflowClient:
    client = MlflowClient("http://mlflow")
    client._http.close()
    transport = httpx.MockTransport(handler)
    client._http = httpx.Client(base_url="http://mlflow", transport=transport)
    return client
