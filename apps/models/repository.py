"""Writes Triton model repositories: one Triton model for each version, so that versions never share
a configuration, and loading or unloading one touches no other.

A directory is built under a name that no version has and renamed: Triton never sees half of one.
Where the server has Triton's ONNX Runtime backend it is used, otherwise our Python-backend wrapper;
Triton's API does not list backends, so the first load tells and a file here remembers.
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

# In the repository: says that the servers have no ONNX Runtime backend, in Triton's words.
WITHOUT_ONNXRUNTIME = ".without-onnxruntime"
# After so long the servers are asked again: somebody may have replaced them.
REMEMBERED_S = 24 * 3600
STAGING = ".staging."
# What a crash left behind is swept when it is so old; no placing takes so long.
STAGING_S = 3600


def triton_name(version: ModelVersion) -> str:
    """Return the name of a version's model in Triton, e.g. `digits.4`."""
    return name_in_triton(version.model.name, version.number)


def name_in_triton(model_name: str, number: int) -> str:
    return f"{model_name}.{number}"


# --- which backend -------------------------------------------------------------------------------


def choose_backend(cluster: ServingCluster) -> str:
    """Return the backend to load the next version of the cluster with."""
    if settings.TRITON_BACKEND != AUTO:
        return str(settings.TRITON_BACKEND)
    try:
        told_at = (Path(cluster.repository_path) / WITHOUT_ONNXRUNTIME).stat().st_mtime
    except OSError:
        return ONNXRUNTIME
    return PYTHON if time.time() - told_at < REMEMBERED_S else ONNXRUNTIME


def lacks_backend(refusal: str) -> bool:
    """Say whether Triton refused a load because it has no ONNX Runtime backend at all."""
    return "backend library" in refusal and f"'{ONNXRUNTIME}'" in refusal


def falls_back_to_python(version: ModelVersion, cluster: ServingCluster, refusal: str) -> bool:
    """Say whether the wrapper may serve what was refused; remember servers without the backend.

    Raises:
        Unavailable: the repository cannot be written.
    """
    if settings.TRITON_BACKEND != AUTO or placed_backend(version, cluster) == PYTHON:
        return False
    if not lacks_backend(refusal):
        # The server's ONNX Runtime may be older than the wrapper's.
        return "opset" in refusal.lower() or "IR version" in refusal
    try:
        (Path(cluster.repository_path) / WITHOUT_ONNXRUNTIME).write_text(f"{refusal}\n")
    except OSError as error:
        raise Unavailable(f"the model repository cannot be written: {error}") from error
    return True


# --- placing -------------------------------------------------------------------------------------


def place_version(version: ModelVersion, cluster: ServingCluster, backend: str = PYTHON) -> None:
    """Write the version's directory into the cluster's repository, in place of an earlier one.

    Raises:
        Unavailable: the artifact or the repository cannot be read or written.
    """
    repository = Path(cluster.repository_path)
    target = repository / triton_name(version)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        _sweep(repository)
        # One scratch directory for each call: workers that place other versions keep theirs. It is
        # in the repository, which may be a volume of its own: nothing can be renamed into that.
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
    """Say whether the repository holds the version as it would be placed now.

    It does not after a change of the batch size or of the settings, or when somebody removed it.
    With the backend left to us what once loaded is not moved to another one.
    """
    try:
        text = (Path(cluster.repository_path) / triton_name(version) / CONFIG_FILE).read_text()
    except OSError:
        return False
    return text == render_config(version, placed_backend(version, cluster))


def placed_backend(version: ModelVersion, cluster: ServingCluster) -> str:
    """Return the backend that a placed version should have: what it has, unless a setting says."""
    if settings.TRITON_BACKEND != AUTO:
        return str(settings.TRITON_BACKEND)
    try:
        text = (Path(cluster.repository_path) / triton_name(version) / CONFIG_FILE).read_text()
    except OSError:
        return choose_backend(cluster)
    return ONNXRUNTIME if f'backend: "{ONNXRUNTIME}"' in text.splitlines() else PYTHON


def remove_version(version: ModelVersion, cluster: ServingCluster) -> None:
    """Take the version's directory out of the repository; nothing happens when it is not there."""
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
        # A link costs nothing for a large model; another file system needs the copy.
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


# --- config.pbtxt --------------------------------------------------------------------------------


def render_config(version: ModelVersion, backend: str = PYTHON) -> str:
    """Return the version's `config.pbtxt` (text form of Triton's ModelConfig)."""
    batch = version.model.max_batch_size if version.batched else 0
    # Our Python backend computes on the CPU; ONNX Runtime's takes a GPU where there is one.
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
        # A new wrapper is placed again like a new configuration.
        *([f"# {RUNTIME.name} {_runtime_digest()}"] if backend == PYTHON else []),
    ]
    return "\n".join(lines) + "\n"


@cache
def _runtime_digest() -> str:
    return hashlib.sha256(RUNTIME.read_bytes()).hexdigest()[:16]


# The data plane has made batches already, and has waited for them to fill: so there is no delay and
# no preferred size here. While an instance is busy, batches of several data planes still join. What
# waited in vain is not computed: each call carries the time that is left to it, which Triton heeds
# only where it is shorter than a time of its own.
DYNAMIC_BATCHING = (
    "dynamic_batching { max_queue_delay_microseconds: 0 default_queue_policy { "
    "timeout_action: REJECT default_timeout_microseconds: 600000000 allow_timeout_override: true } "
    "}"
)


def _ranks(version: ModelVersion) -> dict[str, int]:
    try:
        return ranks_of(Path(version.artifact_path), version.artifact_sha256)
    except Exception:
        # A file that is lost or damaged is refused by whoever copies or loads it, with the reason.
        return {}


def _tensor(what: str, tensor: dict[str, Any], *, batched: bool, ranks: dict[str, int]) -> str:
    dims = tensor["shape"][1:] if batched else tensor["shape"]
    # Triton has no tensor of the batch dimension alone: it is served as a column of one.
    column = batched and dims == [1] and ranks.get(tensor["name"]) == 1
    return (
        f"{what} [ {{ name: {json.dumps(tensor['name'])} data_type: {_type_of(tensor)} "
        f"dims: [ {', '.join(map(str, dims))} ]{' reshape { shape: [ ] }' if column else ''} }} ]"
    )


def _type_of(tensor: dict[str, Any]) -> str:
    datatype = tensor["datatype"]
    return f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}"


def _warmup(version: ModelVersion) -> list[str]:
    """Have each instance answer one row of zeros before Triton calls the version ready.

    So a server that comes back by itself does not answer its first user cold. Where zeros are no
    sensible input, and the version has requests of its own, the control plane asks those.
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
