"""The MLflow registry, by REST. Third-party errors cross here and come out as `Unavailable`.

The client library is never imported: it costs seconds and hundreds of megabytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx
from django.conf import settings

from apps.lib.errors import InterlockError, Invalid, NotFound, Unavailable

API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
PAGE = 200
ONNX_SUFFIX = ".onnx"
# What MLflow's answers mean; every other failure may pass.
PROBLEMS: dict[int, type[InterlockError]] = {400: Invalid, 404: NotFound}


@dataclass(frozen=True)
class RegistryVersion:
    """A version as MLflow's registry knows it; instants are Unix milliseconds."""

    name: str
    number: int
    run_id: str
    source: str
    description: str
    created_at_ms: int
    tags: dict[str, str]
    is_ready: bool
    user: str = ""


@dataclass(frozen=True)
class RegistryModel:
    name: str
    description: str
    aliases: dict[str, int]


@dataclass(frozen=True)
class LoggedModel:
    """A model that a run logged, registered or not."""

    name: str
    run_id: str
    artifact_root: str


@dataclass(frozen=True)
class TrainingRun:
    """What a run recorded: each metric's last value, parameters, the training data's digest."""

    user: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    dataset_digest: str = ""
    artifact_root: str = ""
    logged_model_ids: tuple[str, ...] = ()


class MlflowClient:
    """A connection to one tracking server; use it as a context manager."""

    def __init__(self, base_url: str, token: str = "", timeout_s: float = 10.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=timeout_s)

    def __enter__(self) -> MlflowClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def models(self) -> Iterator[RegistryModel]:
        """Yield every registered model."""
        for item in self._pages("/registered-models/search", "registered_models"):
            yield RegistryModel(
                name=item["name"],
                description=item.get("description", ""),
                aliases={a["alias"]: int(a["version"]) for a in item.get("aliases", [])},
            )

    def versions(self) -> Iterator[RegistryVersion]:
        """Yield every version of every model."""
        for item in self._pages("/model-versions/search", "model_versions"):
            yield _version(item)

    def version(self, name: str, named: str) -> RegistryVersion:
        """Return a version by number or alias. Raises NotFound."""
        if named.isdecimal():
            path, asked = "/model-versions/get", {"name": name, "version": named}
        else:
            path, asked = "/registered-models/alias", {"name": name, "alias": named}
        return _version(self._get(f"{API}{path}", asked)["model_version"])

    def set_alias(self, name: str, alias: str, number: int) -> None:
        """Make `alias` name a version. Raises NotFound when the registry has no such version."""
        body = {"name": name, "alias": alias, "version": str(number)}
        self._send("POST", f"{API}/registered-models/alias", json=body)

    def delete_alias(self, name: str, alias: str) -> None:
        body = {"name": name, "alias": alias}
        self._send("DELETE", f"{API}/registered-models/alias", json=body)

    def logged_model(self, model_id: str) -> LoggedModel:
        """Return a model that a run logged, by its id (`m-…`). Raises NotFound."""
        answer = self._get(f"{API}/logged-models/{quote(model_id, safe='')}", {})
        info = answer["model"]["info"]
        return LoggedModel(info["name"], info.get("source_run_id", ""), info["artifact_uri"])

    def run(self, run_id: str) -> TrainingRun:
        """Return what run `run_id` recorded; an empty run when it was deleted or is unknown."""
        try:
            run = self._get(f"{API}/runs/get", {"run_id": run_id})["run"]
        except NotFound:
            return TrainingRun()
        data = run.get("data", {})
        inputs = run.get("inputs", {}).get("dataset_inputs", [])
        outputs = run.get("outputs", {}).get("model_outputs", [])
        return TrainingRun(
            user=run.get("info", {}).get("user_id", ""),
            metrics=_finite({m["key"]: m["value"] for m in data.get("metrics", [])}),
            parameters={p["key"]: p["value"] for p in data.get("params", [])},
            dataset_digest=", ".join(
                f"{item['dataset']['name']}:{item['dataset']['digest']}" for item in inputs
            )[:200],
            artifact_root=run.get("info", {}).get("artifact_uri", ""),
            logged_model_ids=tuple(item["model_id"] for item in outputs),
        )

    def artifact_root(self, name: str, number: int) -> str:
        """Return where a version's files lie, e.g. `mlflow-artifacts:/1/models/m-…/artifacts`."""
        answer = self._get(
            f"{API}/model-versions/get-download-uri", {"name": name, "version": number}
        )
        return str(answer["artifact_uri"])

    def download(self, root: str, directory: Path, bytes_max: int) -> None:
        """Copy the files directly under `root`, or the one file that it names, into `directory`.

        Raises:
            NotFound: there is nothing.
            Invalid: the artifact store cannot be read from here, or holds more than `bytes_max`.
        """
        parts = urlsplit(root)
        if parts.scheme in {"", "file"}:
            self._copy_local(Path(unquote(parts.path)), directory, bytes_max)
            return
        if parts.scheme != "mlflow-artifacts":
            raise Invalid(
                f"its artifacts are at {parts.scheme}://, which only MLflow can read: start the "
                "tracking server with --serve-artifacts"
            )
        prefix = parts.path.strip("/")
        if prefix.endswith(ONNX_SUFFIX):
            name = PurePosixPath(prefix).name
            self._fetch(f"{ARTIFACTS}/{quote(prefix)}", directory / name, bytes_max)
            return
        left = bytes_max
        files = self._get(ARTIFACTS, {"path": prefix}).get("files", [])
        if not files:
            raise NotFound(f"MLflow has no artifacts at {root}")
        for item in files:
            if item.get("is_dir"):
                continue
            name = PurePosixPath(item["path"]).name
            left -= self._fetch(f"{ARTIFACTS}/{quote(f'{prefix}/{name}')}", directory / name, left)

    def _fetch(self, url: str, path: Path, bytes_max: int) -> int:
        size = 0
        try:
            with self._http.stream("GET", url) as response, path.open("wb") as file:
                self._raise_for(response)
                for chunk in response.iter_bytes():
                    size += len(chunk)
                    if size > bytes_max:
                        raise Invalid(f"its artifact is larger than the limit ({path.name})")
                    file.write(chunk)
        except httpx.HTTPError as error:
            raise Unavailable(f"MLflow did not send {path.name}: {error}") from error
        return size

    @staticmethod
    def _copy_local(source: Path, directory: Path, bytes_max: int) -> None:
        if not source.is_dir():
            raise Invalid(f"its artifacts are in {source}, which this machine does not have")
        files = [path for path in source.iterdir() if path.is_file()]
        if sum(path.stat().st_size for path in files) > bytes_max:
            raise Invalid("its artifact is larger than the limit")
        for path in files:
            (directory / path.name).write_bytes(path.read_bytes())

    def _pages(self, path: str, key: str) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            extra: dict[str, Any] = {"page_token": token} if token else {}
            answer = self._get(f"{API}{path}", {"max_results": PAGE, **extra})
            yield from answer.get(key, [])
            token = answer.get("next_page_token", "")
            if not token:
                return

    def _get(self, path: str, params: dict[str, Any]) -> dict[str, Any]:
        return self._send("GET", path, params=params)

    def _send(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **options)
            self._raise_for(response)
            body: dict[str, Any] = response.json()
        except httpx.HTTPError as error:
            raise Unavailable(f"MLflow does not answer: {error}") from error
        except json.JSONDecodeError as error:
            raise Unavailable(f"MLflow answered {path} with something other than JSON") from error
        return body

    @staticmethod
    def _raise_for(response: httpx.Response) -> None:
        if response.is_success:
            return
        response.read()
        text = re.sub(r"\s+", " ", _message(response))[:300]
        problem = PROBLEMS.get(response.status_code, Unavailable)
        raise problem(f"MLflow answered {response.status_code}: {text}")


def _message(response: httpx.Response) -> str:
    """Return MLflow's own words; of a proxy between, what it sent."""
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.text


def _version(item: dict[str, Any]) -> RegistryVersion:
    return RegistryVersion(
        name=item["name"],
        number=int(item["version"]),
        run_id=item.get("run_id", ""),
        source=item.get("source", ""),
        description=item.get("description", ""),
        created_at_ms=int(item["creation_timestamp"]),
        tags={tag["key"]: tag["value"] for tag in item.get("tags", [])},
        is_ready=item.get("status", "READY") == "READY",
        user=item.get("user_id", ""),
    )


def _finite(metrics: dict[str, Any]) -> dict[str, float]:
    """Leave out NaN and infinities (MLflow sends them as text): JSON columns cannot hold them."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def connect() -> MlflowClient:
    """Return a client for the configured server. Raises Unavailable when none is configured."""
    if not settings.MLFLOW_TRACKING_URI:
        raise Unavailable("No MLflow server is configured (MLFLOW_TRACKING_URI).")
    return MlflowClient(settings.MLFLOW_TRACKING_URI, settings.MLFLOW_TOKEN)
