"""Reads the signature of a model artifact and refuses artifacts that cannot be served.

The served signature comes from the ONNX file, not from the declared metadata. A model is batched if
the first dimension of each input and output is free and its rows are independent (see
`apps.models.batchability`); a tensor without other dimensions is then served with shape [−1, 1], as
Triton requires. A scalar is served with shape [1].
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from django.conf import settings

from apps.lib.errors import Invalid, Unavailable
from apps.models.inspection import DATA_FILE as DATA_FILE
from apps.models.warmup import Request

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
MODEL_FILE = "model.onnx"
DESCRIPTION_BYTES_MAX = 512 * 1024


@dataclass(frozen=True)
class Artifact:
    """A servable ONNX file with its digest and signature.

    `data_path` is a separate file of weights, for models beyond the size limit of one file.
    `warmup` is a request that the model accepts, if it does not accept zeros. `trial_ms` is the
    duration of its trial in milliseconds, by the number of rows.
    """

    path: Path
    sha256: str
    size_bytes: int
    signature: dict[str, list[dict[str, Any]]]
    batched: bool
    warmup: list[Request] = field(default_factory=list)
    data_path: Path | None = None
    trial_ms: dict[str, float] = field(default_factory=dict)


def read_mlflow_model(directory: Path) -> Path:
    """Return the ONNX file of a downloaded MLflow model.

    Raises:
        Invalid: it has no ONNX flavour or no signature; the message says how to fix it.
    """
    description = directory / "MLmodel"
    if not description.exists():
        raise Invalid("it is not an MLflow model: it has no MLmodel file")
    flavours, signature = _read_description(description)
    if "onnx" not in flavours:
        has = ", ".join(sorted(map(str, flavours))) or "none"
        raise Invalid(f"it has no ONNX flavour (it has: {has}); log it with mlflow.onnx.log_model")
    if not _tensors(signature.get("inputs")):
        raise Invalid("it has no signature; log it with signature=infer_signature(inputs, outputs)")
    flavour = flavours["onnx"] if isinstance(flavours["onnx"], dict) else {}
    path = directory / Path(str(flavour.get("data", MODEL_FILE))).name
    if not path.is_file():
        raise Invalid(f"its ONNX file {path.name} is missing")
    return path


def _read_description(path: Path) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Return the flavours and the signature of an MLmodel file; missing ones are empty."""
    if path.stat().st_size > DESCRIPTION_BYTES_MAX:
        raise Invalid(f"its MLmodel file is larger than {DESCRIPTION_BYTES_MAX:,} bytes")
    try:
        document = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        text = str(error) or type(error).__name__
        raise Invalid(f"its MLmodel file cannot be read: {text}") from error
    if not isinstance(document, dict):
        raise Invalid("its MLmodel file is not a mapping")
    flavours, signature = document.get("flavors"), document.get("signature")
    return (
        flavours if isinstance(flavours, dict) else {},
        signature if isinstance(signature, dict) else {},
    )


def _tensors(value: Any) -> list[Any]:
    try:
        tensors = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return []
    return tensors if isinstance(tensors, list) else []


def inspect_onnx(path: Path) -> Artifact:
    """Inspect an ONNX file: merge its external data, read its signature, run trial requests.

    ONNX Runtime loads it and answers the trial requests in a separate process with bounds on memory
    and time, so a hostile or huge file can only kill that process.

    Raises:
        Invalid: it cannot be served; the message says why.
        Unavailable: the process could not be started.
    """
    document = _inspected(path)
    if reason := document.get("refused"):
        raise Invalid(reason)
    data_path = path.with_name(DATA_FILE) if document["data_file"] else None
    files = [path] if data_path is None else [path, data_path]
    return Artifact(
        path=path,
        sha256=_digest(files),
        size_bytes=sum(file.stat().st_size for file in files),
        signature=document["signature"],
        batched=document["batched"],
        warmup=document["warmup"],
        data_path=data_path,
        trial_ms=document["trial_ms"],
    )


def _inspected(path: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "apps.models.inspection", str(path.resolve())]
    limits = settings.INSPECT_MEMORY_BYTES_MAX, settings.INSPECT_TIMEOUT_S, settings.TRIAL_S
    try:
        done = subprocess.run(  # noqa: S603  Our own module; the file is only data.
            [*command, *map(str, limits)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=settings.INSPECT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Invalid(
            f"ONNX Runtime did not load it within {settings.INSPECT_TIMEOUT_S} seconds "
            "(INTERLOCK_INSPECT_TIMEOUT_S)"
        ) from None
    except OSError as error:
        raise Unavailable(f"The artifact cannot be inspected: {error}.") from error
    try:
        document: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        log.warning("artifact.inspection_died %s: %s", path, done.stderr[-2_000:])
        raise Invalid(_exit_reason(done.returncode)) from None
    return document


def _exit_reason(code: int) -> str:
    if -code == signal.SIGKILL:
        return "it needs more memory to load than is available"
    if code < 0:
        return f"ONNX Runtime crashes when it loads it ({signal.Signals(-code).name})"
    return "ONNX Runtime cannot load it (its process ended without a result)"


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
