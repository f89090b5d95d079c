"""Writes Triton model repositories: one Triton model for each version.

Versions therefore never share a configuration, and loading or unloading one does not affect others.
A directory is built under a temporary name and renamed, so Triton never reads an incomplete one.
The ONNX Runtime backend is used if the server has it, else our Python-backend wrapper. Triton's API
does not list backends: a failed first load shows it, and a file in the repository records it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

from django.conf import settings

from apps.lib.errors import Unavailable
from apps.models.artifacts import DATA_FILE, MODEL_FILE
from apps.models.models import ModelVersion, ServingCluster
from apps.models.onnx_ranks import ranks_of

RUNTIME = Path(__file__).parent / "triton_runtime" / "model.py"
CONFIG_FILE = "config.pbtxt"
PYTHON, ONNXRUNTIME, AUTO = "python", "onnxruntime", "auto"
BACKENDS = (AUTO, PYTHON, ONNXRUNTIME)

# This file in the repository records that the servers lack the ONNX Runtime backend.
WITHOUT_ONNXRUNTIME = ".without-onnxruntime"
# After this time the record expires: the servers may have been replaced.
RECORD_VALID_S = 24 * 3600
STAGING = ".staging."
# Older staging directories are left from a crash: no placement takes this long.
STAGING_S = 3600


def triton_name(version: ModelVersion) -> str:
    """Return the name of a version's model in Triton, e.g. `digits.4`."""
    return name_in_triton(version.model.name, version.number)


def name_in_triton(model_name: str, number: int) -> str:
    return f"{model_name}.{number}"


# --- backend -------------------------------------------------------------------------------------


def choose_backend(cluster: ServingCluster) -> str:
    """Return the backend for the next version that the cluster loads."""
    if settings.TRITON_BACKEND != AUTO:
        return str(settings.TRITON_BACKEND)
    try:
        recorded_at = (Path(cluster.repository_path) / WITHOUT_ONNXRUNTIME).stat().st_mtime
    except OSError:
        return ONNXRUNTIME
    return PYTHON if time.time() - recorded_at < RECORD_VALID_S else ONNXRUNTIME


def lacks_backend(refusal: str) -> bool:
    """Return whether Triton refused a load because it lacks the ONNX Runtime backend."""
    return "backend library" in refusal and f"'{ONNXRUNTIME}'" in refusal


def falls_back_to_python(version: ModelVersion, cluster: ServingCluster, refusal: str) -> bool:
    """Return whether to retry a refused load with the wrapper; record a missing backend.

    Raises:
        Unavailable: the repository cannot be written.
    """
    if settings.TRITON_BACKEND != AUTO or placed_backend(version, cluster) == PYTHON:
        return False
    if not lacks_backend(refusal):
        # The server's ONNX Runtime may be older than that of the wrapper.
        return "opset" in refusal.lower() or "IR version" in refusal
    try:
        (Path(cluster.repository_path) / WITHOUT_ONNXRUNTIME).write_text(f"{refusal}\n")
    except OSError as error:
        raise Unavailable(f"the model repository cannot be written: {error}") from error
    return True


# --- placement -----------------------------------------------------------------------------------


def place_version(version: ModelVersion, cluster: ServingCluster, backend: str = PYTHON) -> None:
    """Write or replace the version's directory in the cluster's repository.

    Raises:
        Unavailable: the artifact or the repository cannot be read or written.
    """
    repository = Path(cluster.repository_path)
    target = repository / triton_name(version)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        _sweep(repository)
        # One scratch directory for each call, since several workers may place versions. It is in
        # the repository, because a rename does not work across volumes.
        with tempfile.TemporaryDirectory(dir=repository, prefix=STAGING) as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir()
            _write(fresh, version, backend)
            if target.exists():
                target.replace(Path(scratch) / "old")
            fresh.chmod(0o755)
            fresh.replace(target)
    except OSError as error:
        raise Unavailable(f"the model repository cannot be written: {error}") from error


def is_placed(version: ModelVersion, cluster: ServingCluster) -> bool:
    """Return whether the repository has the version in its current configuration.

    False after a change of the batch size or of the settings, or if it was removed. With the
    backend `auto`, a version stays on the backend that loaded it.
    """
    try:
        text = (Path(cluster.repository_path) / triton_name(version) / CONFIG_FILE).read_text()
    except OSError:
        return False
    return text == render_config(version, placed_backend(version, cluster))


def placed_backend(version: ModelVersion, cluster: ServingCluster) -> str:
    """Return the backend of the settings, else of the placed version, else for a new one."""
    if settings.TRITON_BACKEND != AUTO:
        return str(settings.TRITON_BACKEND)
    try:
        text = (Path(cluster.repository_path) / triton_name(version) / CONFIG_FILE).read_text()
    except OSError:
        return choose_backend(cluster)
    return ONNXRUNTIME if f'backend: "{ONNXRUNTIME}"' in text.splitlines() else PYTHON


def remove_version(version: ModelVersion, cluster: ServingCluster) -> None:
    """Delete the version's directory from the repository, if it exists."""
    shutil.rmtree(Path(cluster.repository_path) / triton_name(version), ignore_errors=True)


def _sweep(repository: Path) -> None:
    for left in repository.glob(f"{STAGING}*"):
        if time.time() - left.stat().st_mtime > STAGING_S:
            shutil.rmtree(left, ignore_errors=True)


def _write(directory: Path, version: ModelVersion, backend: str) -> None:
    (directory / CONFIG_FILE).write_text(render_config(version, backend))
    place = directory / str(version.number)
    place.mkdir()
    if backend == PYTHON:
        shutil.copyfile(RUNTIME, place / RUNTIME.name)
    artifact = Path(version.artifact_path)
    _link(artifact, place / MODEL_FILE)
    if (data := artifact.with_name(DATA_FILE)).exists():
        _link(data, place / DATA_FILE)


def _link(source: Path, target: Path) -> None:
    try:
        # A hard link costs nothing for a large model; another file system needs a copy.
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


# --- config.pbtxt --------------------------------------------------------------------------------


def render_config(version: ModelVersion, backend: str = PYTHON) -> str:
    """Return the version's `config.pbtxt` (text form of Triton's ModelConfig)."""
    batch = version.model.max_batch_size if version.batched else 0
    # The wrapper computes on the CPU; ONNX Runtime's backend uses a GPU if available.
    kind = "KIND_CPU" if backend == PYTHON else "KIND_AUTO"
    tensor = partial(_tensor, batched=version.batched, ranks=_ranks(version))
    lines = [
        f"name: {json.dumps(triton_name(version))}",
        f'backend: "{backend}"',
        *([f'default_model_filename: "{MODEL_FILE}"'] if backend == ONNXRUNTIME else []),
        f"max_batch_size: {batch}",
        *(tensor("input", item) for item in version.signature["inputs"]),
        *(tensor("output", item) for item in version.signature["outputs"]),
        f"instance_group [ {{ count: {settings.TRITON_INSTANCES} kind: {kind} }} ]",
        DYNAMIC_BATCHING,
        *_warmup(version),
        f"version_policy {{ specific {{ versions: [ {version.number} ] }} }}",
        # A changed wrapper causes a new placement, as a changed configuration does.
        *([f"# {RUNTIME.name} {_runtime_digest()}"] if backend == PYTHON else []),
    ]
    return "\n".join(lines) + "\n"


@cache
def _runtime_digest() -> str:
    return hashlib.sha256(RUNTIME.read_bytes()).hexdigest()[:16]


# The data plane builds the batches and waits for them to fill, so there is neither a delay nor a
# preferred size here. While an instance is busy, batches of several data planes are still merged.
# Expired requests are not computed: each call carries its remaining time, which Triton uses only
# if it is shorter than the default timeout.
DYNAMIC_BATCHING = (
    "dynamic_batching { max_queue_delay_microseconds: 0 default_queue_policy { "
    "timeout_action: REJECT default_timeout_microseconds: 600000000 allow_timeout_override: true } "
    "}"
)


def _ranks(version: ModelVersion) -> dict[str, int]:
    try:
        return ranks_of(Path(version.artifact_path), version.artifact_sha256)
    except Exception:
        # A lost or damaged file fails later, when it is copied or loaded, with the reason.
        return {}


def _tensor(what: str, tensor: dict[str, Any], *, batched: bool, ranks: dict[str, int]) -> str:
    dims = tensor["shape"][1:] if batched else tensor["shape"]
    # Triton has no tensors with only a batch dimension: serve them as one column.
    column = batched and dims == [1] and ranks.get(tensor["name"]) == 1
    return (
        f"{what} [ {{ name: {json.dumps(tensor['name'])} data_type: {_type_of(tensor)} "
        f"dims: [ {', '.join(map(str, dims))} ]{' reshape { shape: [ ] }' if column else ''} }} ]"
    )


def _type_of(tensor: dict[str, Any]) -> str:
    datatype = tensor["datatype"]
    return f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}"


def _warmup(version: ModelVersion) -> list[str]:
    """Configure Triton to run one row of zeros on each instance before the version is ready.

    A restarted server is then warm for its first user. A version with warm-up requests of its own
    is warmed up by the control plane instead, because zeros may not be a valid input.
    """
    if version.warmup:
        return []
    inputs = []
    for tensor in version.signature["inputs"]:
        shape = tensor["shape"][1:] if version.batched else tensor["shape"]
        dims = ", ".join("1" if size == -1 else str(size) for size in shape)
        inputs.append(
            f"inputs {{ key: {json.dumps(tensor['name'])} value {{ data_type: {_type_of(tensor)} "
            f"dims: [ {dims} ] zero_data: true }} }}"
        )
    batch = 1 if version.batched else 0
    return [f'model_warmup [ {{ name: "zeros" batch_size: {batch} {" ".join(inputs)} }} ]']
