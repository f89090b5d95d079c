"""Writes Triton model repositories: one Triton model for each version, so that versions never share
a configuration, and loading or unloading one touches no other.

A directory is built beside the repository and renamed into it: Triton never sees half of one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from apps.lib.errors import Unavailable
from apps.models.artifacts import MODEL_FILE
from apps.models.models import ModelVersion, ServingCluster

RUNTIME = Path(__file__).parent / "triton_runtime" / "model.py"


def triton_name(version: ModelVersion) -> str:
    """Return the name of a version's model in Triton, e.g. `digits.4`."""
    return name_in_triton(version.model.name, version.number)


def name_in_triton(model_name: str, number: int) -> str:
    return f"{model_name}.{number}"


def place_version(version: ModelVersion, cluster: ServingCluster) -> None:
    """Write the version's directory into the cluster's repository, in place of an earlier one.

    Raises:
        Unavailable: the artifact or the repository cannot be read or written.
    """
    repository = Path(cluster.repository_path)
    target = repository / triton_name(version)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        # One scratch directory for each call: workers that place other versions keep theirs.
        with tempfile.TemporaryDirectory(
            dir=repository.parent, prefix=f".{repository.name}.staging."
        ) as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir()
            _write(fresh, version)
            if target.exists():
                target.replace(Path(scratch) / "old")
            fresh.chmod(0o755)
            fresh.replace(target)
    except OSError as error:
        raise Unavailable(f"the model repository cannot be written: {error}") from error


def remove_version(version: ModelVersion, cluster: ServingCluster) -> None:
    """Take the version's directory out of the repository; nothing happens when it is not there."""
    shutil.rmtree(Path(cluster.repository_path) / triton_name(version), ignore_errors=True)


def _write(directory: Path, version: ModelVersion) -> None:
    (directory / "config.pbtxt").write_text(render_config(version))
    place = directory / str(version.number)
    place.mkdir()
    shutil.copyfile(RUNTIME, place / "model.py")
    try:
        # A link costs nothing for a large model; another file system needs the copy.
        os.link(version.artifact_path, place / MODEL_FILE)
    except OSError:
        shutil.copyfile(version.artifact_path, place / MODEL_FILE)


def render_config(version: ModelVersion) -> str:
    """Return the version's `config.pbtxt` (text form of Triton's ModelConfig)."""
    batch = version.model.max_batch_size if version.batched else 0
    lines = [
        f"name: {json.dumps(triton_name(version))}",
        'backend: "python"',
        f"max_batch_size: {batch}",
        *_tensors("input", version.signature["inputs"], version.batched),
        *_tensors("output", version.signature["outputs"], version.batched),
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
        f"version_policy {{ specific {{ versions: [ {version.number} ] }} }}",
    ]
    return "\n".join(lines) + "\n"


def _tensors(what: str, tensors: list[dict[str, Any]], batched: bool) -> list[str]:
    rows = []
    for tensor in tensors:
        dims = tensor["shape"][1:] if batched else tensor["shape"]
        datatype = {"BYTES": "STRING"}.get(tensor["datatype"], tensor["datatype"])
        rows.append(
            f"{what} [ {{ name: {json.dumps(tensor['name'])} data_type: TYPE_{datatype} "
            f"dims: [ {', '.join(map(str, dims))} ] }} ]"
        )
    return rows
