"""Fetches a model from a URI: from the configured MLflow, from files below one directory, or by
HTTPS from listed hosts. Files and HTTPS are off by default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from django.conf import settings

from apps.lib.egress import AllowList, exchange
from apps.lib.errors import Invalid, NotFound, TooLarge, Unavailable
from apps.models.artifacts import MODEL_FILE, read_mlflow_model
from apps.models.internal_hosts import configured_policy
from apps.models.local_files import copy_files, local_path
from apps.models.mlflow import ONNX_SUFFIX, MlflowClient, connect

HTTPS_TIMEOUT_S = 10.0
# The whole download; a person or a CI job waits for it.
HTTPS_WITHIN_S = 300.0
CHUNK_BYTES = 1 << 20
LOGGED_MODEL_PREFIX = "m-"
FILES_ARE_OFF = "file: URIs are off; set INTERLOCK_REGISTER_DIR to allow a directory."
Reader = Callable[[str, SplitResult, Path], str]


@dataclass(frozen=True)
class Reference:
    """A version in MLflow's registry, by number or alias: `models:/digits/3`."""

    name: str
    named: str


def read_reference(uri: str) -> Reference | None:
    """Return the registered version that `uri` names; None if it names something else."""
    parts = _split(uri)
    if parts.scheme != "models":
        return None
    path = parts.path.strip("/")
    for separator in ("/", "@"):
        name, match, named = path.rpartition(separator)
        if match and name and named:
            return Reference(name, named)
    return None


def fetch_model(uri: str, directory: Path) -> str:
    """Copy the model's files into `directory`; return the id of its MLflow run, or empty.

    Raises:
        Invalid: the URI is not allowed; the message names the setting.
        NotFound: it does not exist.
        TooLarge: it exceeds INTERLOCK_ARTIFACT_BYTES_MAX.
        Unavailable: the server does not respond.
    """
    parts = _split(uri)
    return _reader(uri, parts)(uri, parts, directory)


def check_uri(uri: str) -> None:
    """Raise Invalid for a URI that is not allowed, as far as known without reading it."""
    parts = _split(uri)
    _reader(uri, parts)
    if parts.scheme == "file" and not settings.REGISTER_DIR:
        raise Invalid(FILES_ARE_OFF, field="uri")
    if parts.scheme == "https":
        _check_host(parts)


def _reader(uri: str, parts: SplitResult) -> Reader:
    reader = READERS.get(parts.scheme)
    if reader is None:
        known = ", ".join(f"{scheme}:" for scheme in READERS)
        raise Invalid(f"unknown scheme in {uri!r}; expected one of {known}.", field="uri")
    return reader


def _check_host(parts: SplitResult) -> None:
    if not settings.REGISTER_HOSTS:
        raise Invalid(
            "https: URIs are off; set INTERLOCK_REGISTER_HOSTS to allow hosts.", field="uri"
        )
    if parts.netloc.rpartition("@")[2].lower() not in settings.REGISTER_HOSTS:
        raise Invalid(f"the host {parts.hostname} is not in INTERLOCK_REGISTER_HOSTS.", field="uri")


def _split(uri: str) -> SplitResult:
    try:
        if uri.isprintable():
            return urlsplit(uri)
    except ValueError:
        pass
    raise Invalid(f"{uri!r} is not a valid URI.", field="uri")


def find_onnx(directory: Path) -> Path:
    """Return the ONNX file of a fetched MLflow model, or the only ONNX file in `directory`.

    Raises:
        Invalid: there is none, or more than one.
    """
    if (directory / "MLmodel").exists():
        return read_mlflow_model(directory)
    files = sorted(path for path in directory.iterdir() if path.suffix == ONNX_SUFFIX)
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise Invalid(f"expected an MLmodel file or one *{ONNX_SUFFIX} file; found: {names}")
    return files[0]


def _artifacts(uri: str, parts: SplitResult, directory: Path) -> str:
    if parts.netloc:
        raise Invalid(
            f"{uri!r} names a server; use mlflow-artifacts:/path, which is read from the "
            "configured MLflow server.",
            field="uri",
        )
    with connect() as client:
        client.download(uri, directory, settings.ARTIFACT_BYTES_MAX)
    return ""


def _models(uri: str, parts: SplitResult, directory: Path) -> str:
    path = parts.path.strip("/")
    reference = read_reference(uri)
    if reference is None and not path.startswith(LOGGED_MODEL_PREFIX):
        raise Invalid(
            f"unknown form {uri!r}; expected models:/NAME/NUMBER, models:/NAME@ALIAS "
            "or models:/ID.",
            field="uri",
        )
    with connect() as client:
        if reference is None:
            model = client.logged_model(path)
            root, run_id = model.artifact_root, model.run_id
        else:
            version = client.version(reference.name, reference.named)
            root, run_id = client.artifact_root(version.name, version.number), version.run_id
        client.download(root, directory, settings.ARTIFACT_BYTES_MAX)
    return run_id


def _runs(uri: str, parts: SplitResult, directory: Path) -> str:
    run_id, _, path = parts.path.strip("/").partition("/")
    if not run_id or not path or ".." in path.split("/"):
        raise Invalid(f"{uri!r} is not of the form runs:/RUN_ID/PATH.", field="uri")
    with connect() as client:
        run = client.run(run_id)
        if not run.artifact_root:
            raise NotFound(f"MLflow has no run {run_id!r}.")
        root = _logged(client, run.logged_model_ids, path) or f"{run.artifact_root}/{path}"
        client.download(root, directory, settings.ARTIFACT_BYTES_MAX)
    return run_id


def _logged(client: MlflowClient, ids: tuple[str, ...], name: str) -> str:
    """Return the artifact root of a run's model; MLflow 3 stores models outside of the run."""
    models = [client.logged_model(model_id) for model_id in ids]
    return next((model.artifact_root for model in models if model.name == name), "")


def _file(uri: str, parts: SplitResult, directory: Path) -> str:
    if not settings.REGISTER_DIR:
        raise Invalid(FILES_ARE_OFF, field="uri")
    root = Path(settings.REGISTER_DIR)
    try:
        copy_files(local_path(parts), root, directory, settings.ARTIFACT_BYTES_MAX)
    except TooLarge:
        raise too_large() from None
    except (Invalid, NotFound) as error:
        raise type(error)(f"{error.text} (INTERLOCK_REGISTER_DIR).", field="uri") from error
    return ""


def _https(uri: str, parts: SplitResult, directory: Path) -> str:
    _check_host(parts)
    host = parts.hostname or ""
    # The operator listed the host, which may be private; own services stay refused.
    policy = replace(configured_policy(), allowed=AllowList(names=frozenset({host})))
    bounds = {"timeout_s": HTTPS_WITHIN_S, "idle_s": HTTPS_TIMEOUT_S}
    with exchange("GET", uri, {}, None, policy=policy, **bounds) as response:
        _save(response, host, directory / MODEL_FILE)
    return ""


def _save(response: HTTPResponse, host: str, path: Path) -> None:
    if 300 <= response.status < 400:
        # It could point to any host, so it is not followed.
        raise Invalid(
            f"redirects are not followed: {(response.getheader('location') or '')[:300]}",
            field="uri",
        )
    if not 200 <= response.status < 300:
        problem = Unavailable if response.status >= 500 else NotFound
        raise problem(f"{host} returned HTTP {response.status}.")
    size = 0
    with path.open("wb") as file:
        while chunk := response.read(CHUNK_BYTES):
            size += len(chunk)
            if size > settings.ARTIFACT_BYTES_MAX:
                raise too_large()
            file.write(chunk)


def too_large() -> TooLarge:
    return TooLarge(
        f"The model is larger than {settings.ARTIFACT_BYTES_MAX:,} bytes "
        "(INTERLOCK_ARTIFACT_BYTES_MAX)."
    )


READERS: dict[str, Reader] = {
    "models": _models,
    "runs": _runs,
    "mlflow-artifacts": _artifacts,
    "file": _file,
    "https": _https,
}
