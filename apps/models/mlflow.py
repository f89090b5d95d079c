"""REST client of the MLflow registry. Errors of httpx and MLflow become InterlockErrors here.

Must not import the MLflow library, which costs seconds and hundreds of megabytes.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

import httpx
from django.conf import settings

from apps.lib.errors import InterlockError, Invalid, NotFound, Unavailable
from apps.models.local_files import FILES_MAX, copy_files, local_path

API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
PROBE_TIMEOUT_S = 5.0
PAGE = 200
PAGES_MAX = 1_000
ONNX_SUFFIX = ".onnx"
NAME_BYTES_MAX = 255
NUMBER_MAX = 2**31 - 1
ANSWER_BYTES_MAX = 64 * 1024**2
ERROR_BYTES_MAX = 16 * 1024
# Errors that a response of unexpected form causes.
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
log = logging.getLogger(__name__)
# Errors by status; all others are temporary.
PROBLEMS: dict[int, type[InterlockError]] = {400: Invalid, 404: NotFound}


@dataclass(frozen=True)
class RegistryVersion:
    """A version in MLflow's registry; times are Unix milliseconds."""

    name: str
    number: int
    run_id: str
    source: str
    description: str
    created_at_ms: int
    tags: dict[str, str]
    is_ready: bool
    user: str = ""
    # Why the other fields could not be read, or empty.
    problem: str = ""


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
    """Data of a run: last value of each metric, parameters, digest of the training data."""

    user: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    dataset_digest: str = ""
    artifact_root: str = ""
    logged_model_ids: tuple[str, ...] = ()


class NotReached(Unavailable):
    """MLflow did not respond at all, so further requests would fail as well."""


class MlflowClient:
    """A connection to one tracking server; use it as a context manager."""

    def __init__(
        self,
        base_url: str,
        token: str = "",
        login: tuple[str, str] = ("", ""),
        timeout_s: float = 10.0,
    ) -> None:
        """A token takes precedence over `login`, and `login` over credentials in the URL."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        auth = login if login[0] and not token else None
        self._http = httpx.Client(base_url=base_url, headers=headers, auth=auth, timeout=timeout_s)

    def __enter__(self) -> MlflowClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def models(self) -> Iterator[RegistryModel]:
        """Yield every registered model."""
        for item in self._pages("/registered-models/search", "registered_models"):
            try:
                yield _model(item)
            except UNREADABLE as error:
                log.warning("registry.unreadable_model %s: %r", str(item)[:200], error)

    def versions(self) -> Iterator[RegistryVersion]:
        """Yield every version of every model."""
        for item in self._pages("/model-versions/search", "model_versions"):
            try:
                yield _version(item)
            except UNREADABLE as error:
                yield from _unreadable(item, error)

    def version(self, name: str, named: str) -> RegistryVersion:
        """Return a version by number or alias. Raises NotFound."""
        if named.isdecimal():
            path, query = "/model-versions/get", {"name": name, "version": named}
        else:
            path, query = "/registered-models/alias", {"name": name, "alias": named}
        answer = self._get(f"{API}{path}", query)
        with _reading("the version"):
            return _version(answer["model_version"])

    def set_alias(self, name: str, alias: str, number: int) -> None:
        """Set `alias` to a version. Raises NotFound if the registry has no such version."""
        body = {"name": name, "alias": alias, "version": str(number)}
        self._send("POST", f"{API}/registered-models/alias", json=body)

    def delete_alias(self, name: str, alias: str) -> None:
        body = {"name": name, "alias": alias}
        self._send("DELETE", f"{API}/registered-models/alias", json=body)

    def logged_model(self, model_id: str) -> LoggedModel:
        """Return a model that a run logged, by its id (`m-…`). Raises NotFound."""
        answer = self._get(f"{API}/logged-models/{quote(model_id, safe='')}", {})
        with _reading("the model"):
            info = answer["model"]["info"]
            return LoggedModel(
                str(info["name"]), str(info.get("source_run_id", "")), str(info["artifact_uri"])
            )

    def run(self, run_id: str) -> TrainingRun:
        """Return the data of run `run_id`; an empty run if it was deleted or is unknown."""
        try:
            run = self._get(f"{API}/runs/get", {"run_id": run_id}).get("run")
        except NotFound:
            return TrainingRun()
        with _reading("the run"):
            return _run(run)

    def artifact_root(self, name: str, number: int) -> str:
        """Return the root of a version's files, e.g. `mlflow-artifacts:/1/models/m-…/artifacts`."""
        answer = self._get(
            f"{API}/model-versions/get-download-uri", {"name": name, "version": number}
        )
        with _reading("the location of the files"):
            return str(answer["artifact_uri"])

    def download(self, root: str, directory: Path, bytes_max: int) -> None:
        """Copy the files directly under `root`, or the file that it names, into `directory`.

        Raises:
            NotFound: it does not exist.
            Invalid: the root is not a plain path, its store cannot be read from here, or the files
                have more than `bytes_max`.
        """
        parts = _split(root)
        if parts.scheme in {"", "file"}:
            self._copy_local(parts, directory, bytes_max)
            return
        if parts.scheme != "mlflow-artifacts":
            raise Invalid(
                f"its artifacts are at {parts.scheme}://, which only MLflow can read: start the "
                "tracking server with --serve-artifacts"
            )
        prefix = _plain_path(parts)
        if prefix.endswith(ONNX_SUFFIX):
            name = PurePosixPath(prefix).name
            self._fetch(f"{ARTIFACTS}/{quote(prefix)}", directory / name, bytes_max)
            return
        left = bytes_max
        files = _names(self._get(ARTIFACTS, {"path": prefix}))
        if not files:
            raise NotFound(f"MLflow has no artifacts at {root}")
        for name in files:
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
    def _copy_local(parts: SplitResult, directory: Path, bytes_max: int) -> None:
        path = local_path(parts)
        if not settings.MLFLOW_ARTIFACT_DIR:
            raise Invalid(
                f"its artifacts are in {path}, which is not read: start the tracking server with "
                "--serve-artifacts, or set INTERLOCK_MLFLOW_ARTIFACT_DIR to the directory"
            )
        copy_files(path, Path(settings.MLFLOW_ARTIFACT_DIR), directory, bytes_max)

    def _pages(self, path: str, key: str) -> Iterator[dict[str, Any]]:
        token, pages = "", 0
        while True:
            extra: dict[str, Any] = {"page_token": token} if token else {}
            answer = self._get(f"{API}{path}", {"max_results": PAGE, **extra})
            for item in _list(answer.get(key)):
                if isinstance(item, dict):
                    yield item
            token, pages = answer.get("next_page_token", ""), pages + 1
            if not token:
                return
            if pages == PAGES_MAX:
                raise Unavailable(f"MLflow returned more than {PAGES_MAX} pages for {path}")

    def _get(self, path: str, params: dict[str, Any]) -> dict[str, Any]:
        return self._send("GET", path, params=params)

    def _send(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            with self._http.stream(method, path, **options) as response:
                self._raise_for(response)
                text = _bounded(response, ANSWER_BYTES_MAX)
            body = json.loads(text)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise NotReached(f"MLflow does not answer: {error}") from error
        except (ValueError, RecursionError) as error:
            raise Unavailable(f"MLflow answered {path} with something other than JSON") from error
        if not isinstance(body, dict):
            raise Unavailable(f"MLflow answered {path} with something other than an object")
        return body

    @staticmethod
    def _raise_for(response: httpx.Response) -> None:
        if response.is_success:
            return
        text = re.sub(r"\s+", " ", _message(_bounded(response, ERROR_BYTES_MAX)))[:300]
        problem = PROBLEMS.get(response.status_code, Unavailable)
        raise problem(f"MLflow answered {response.status_code}: {text}")


def _message(text: bytes) -> str:
    """Return the message of MLflow's error, or the text of a response from a proxy."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return text.decode("utf-8", "replace")


def _bounded(response: httpx.Response, bytes_max: int) -> bytes:
    """Return the body. Raises Unavailable beyond `bytes_max`; an error body is truncated."""
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > bytes_max:
            if response.is_success:
                raise Unavailable(f"MLflow answered more than {bytes_max:,} bytes")
            break
    return bytes(body[:bytes_max])


def _split(root: str) -> SplitResult:
    try:
        if root.isprintable():
            return urlsplit(root)
    except ValueError:
        pass
    raise Invalid(f"its artifact root {root!r} is not a valid URI")


def _plain_path(parts: SplitResult) -> str:
    """Return the path of an artifact root. Raises Invalid for a query, a fragment or `..`."""
    path = unquote(parts.path)
    if parts.query or parts.fragment or ".." in path.split("/") or not path.isprintable():
        raise Invalid(f"its artifact root {parts.geturl()!r} is not a plain path")
    return parts.path.strip("/")


def _names(answer: dict[str, Any]) -> list[str]:
    """Return the file names of a listing. Raises Invalid if one is not a valid file name."""
    items = [item for item in _list(answer.get("files")) if isinstance(item, dict)]
    names = [PurePosixPath(str(i.get("path"))).name for i in items if not i.get("is_dir")]
    for name in names:
        if name in {"", ".", ".."} or not name.isprintable() or len(name.encode()) > NAME_BYTES_MAX:
            raise Invalid(f"one of its artifacts has the invalid name {name[:100]!r}")
    if len(names) > FILES_MAX:
        raise Invalid(f"it has {len(names)} artifacts; the maximum is {FILES_MAX}")
    return names


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise Invalid(f"MLflow returned {what} in an unexpected form: {error!r}") from error


def _model(item: dict[str, Any]) -> RegistryModel:
    return RegistryModel(
        name=str(item["name"]),
        description=str(item.get("description") or ""),
        aliases={str(a["alias"]): int(a["version"]) for a in _list(item.get("aliases"))},
    )


def _version(item: dict[str, Any]) -> RegistryVersion:
    return RegistryVersion(
        name=str(item["name"]),
        number=_number(item),
        run_id=str(item.get("run_id") or ""),
        source=str(item.get("source") or ""),
        description=str(item.get("description") or ""),
        created_at_ms=int(item["creation_timestamp"]),
        tags={str(tag["key"]): str(tag["value"]) for tag in _list(item.get("tags"))},
        is_ready=item.get("status", "READY") == "READY",
        user=str(item.get("user_id") or ""),
    )


def _number(item: dict[str, Any]) -> int:
    number = int(item["version"])
    if not 0 < number <= NUMBER_MAX:
        raise ValueError(f"{number} is not a valid version number")
    return number


def _unreadable(item: dict[str, Any], error: Exception) -> Iterator[RegistryVersion]:
    """Yield name and number of an unreadable version, if at least these can be read."""
    try:
        name, number = str(item["name"]), _number(item)
    except UNREADABLE:
        log.warning("registry.unreadable_version %s: %r", str(item)[:200], error)
        return
    problem = f"MLflow returned it in an unexpected form: {error!r}"
    yield RegistryVersion(name, number, "", "", "", 0, {}, is_ready=True, problem=problem)


def _run(run: Any) -> TrainingRun:
    info, data = run.get("info") or {}, run.get("data") or {}
    inputs = _list((run.get("inputs") or {}).get("dataset_inputs"))
    outputs = _list((run.get("outputs") or {}).get("model_outputs"))
    return TrainingRun(
        user=str(info.get("user_id") or ""),
        metrics=_finite({str(m["key"]): m["value"] for m in _list(data.get("metrics"))}),
        parameters={str(p["key"]): str(p["value"]) for p in _list(data.get("params"))},
        dataset_digest=", ".join(
            f"{item['dataset']['name']}:{item['dataset']['digest']}" for item in inputs
        )[:200],
        artifact_root=str(info.get("artifact_uri") or ""),
        logged_model_ids=tuple(str(item["model_id"]) for item in outputs),
    )


def _finite(metrics: dict[str, Any]) -> dict[str, float]:
    """Drop NaN and infinities, which MLflow sends as text: JSON columns cannot store them."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def connect() -> MlflowClient:
    """Return a client for the configured server. Raises Unavailable when none is configured."""
    if not settings.MLFLOW_TRACKING_URI:
        raise Unavailable("No MLflow server is configured (MLFLOW_TRACKING_URI).")
    return MlflowClient(settings.MLFLOW_TRACKING_URI, settings.MLFLOW_TOKEN, settings.MLFLOW_LOGIN)


def is_open() -> bool:
    """Return whether MLflow accepts requests without credentials. Raises Unavailable."""
    if not settings.MLFLOW_TRACKING_URI:
        return False
    url = urlsplit(settings.MLFLOW_TRACKING_URI)
    # Without credentials from the URL.
    plain = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl().rstrip("/")
    try:
        answer = httpx.get(
            f"{plain}{API}/registered-models/search",
            params={"max_results": 1},
            timeout=PROBE_TIMEOUT_S,
        )
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise NotReached(f"MLflow does not answer: {error}") from error
    if answer.is_server_error:
        raise Unavailable(f"MLflow answered {answer.status_code}")
    return answer.is_success
