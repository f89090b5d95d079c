"""Reads what a model artifact really takes and gives, and refuses what we cannot serve.

The served signature comes from the ONNX graph, not from what was declared beside it. A model is
batched when the first dimension of every input and output is free; then that dimension is the
batch, and a tensor that has no other one is served with shape [−1, 1], as Triton needs it. A scalar
is served with shape [1].
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from apps.lib.errors import Invalid

MODEL_FILE = "model.onnx"
# Weights of a model that is too large for one file, beside it.
DATA_FILE = "model.onnx.data"
ONNX_BYTES_MAX = 2 * 1024**3 - 1

# ONNX element types to OIP datatypes; the others have no numpy form that Triton's Python backend
# could pass on.
DATATYPES = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
}


@dataclass(frozen=True)
class Artifact:
    """One servable ONNX file: where it is, its digest, and what it takes and gives."""

    path: Path
    sha256: str
    size_bytes: int
    signature: dict[str, list[dict[str, Any]]]
    batched: bool


def read_mlflow_model(directory: Path) -> Path:
    """Return the ONNX file of a downloaded MLflow model.

    Raises:
        Invalid: it has no ONNX flavour or no signature, with what to do about it.
    """
    description = directory / "MLmodel"
    if not description.exists():
        raise Invalid("it is not an MLflow model: there is no MLmodel file")
    try:
        document = yaml.safe_load(description.read_text())
    except yaml.YAMLError as error:
        raise Invalid(f"its MLmodel file cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise Invalid("its MLmodel file says nothing")
    flavours = document.get("flavors") or {}
    if "onnx" not in flavours:
        has = ", ".join(sorted(flavours)) or "none"
        raise Invalid(f"it has no ONNX flavour (it has: {has}); log it with mlflow.onnx.log_model")
    signature = document.get("signature") or {}
    if not _tensors(signature.get("inputs")):
        raise Invalid("it has no signature; log it with signature=infer_signature(inputs, outputs)")
    path = directory / Path(str(flavours["onnx"].get("data", MODEL_FILE))).name
    if not path.is_file():
        raise Invalid(f"its ONNX file {path.name} is missing")
    return path


def _tensors(value: Any) -> list[Any]:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        return []
    return found if isinstance(found, list) else []


def inspect_onnx(path: Path) -> Artifact:
    """Check an ONNX file, fold external data into it, and return what it takes and gives.

    Raises:
        Invalid: it is damaged, or has an input or output that cannot be served.
    """
    import onnx
    from onnx.external_data_helper import uses_external_data

    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # onnx raises what protobuf, the file system and its checker raise
        raise Invalid(f"its ONNX file is damaged: {str(error).strip()[:300]}") from error
    stored = onnx.load(str(path), load_external_data=False)
    if any(uses_external_data(tensor) for tensor in stored.graph.initializer):
        if model.ByteSize() > ONNX_BYTES_MAX:
            raise Invalid("its ONNX model is larger than 2 GB")
        onnx.save(model, str(path), save_as_external_data=False)
    signature, batched = _signature_of(model.graph)
    return Artifact(path, _digest(path), path.stat().st_size, signature, batched)


def _signature_of(graph: Any) -> tuple[dict[str, list[dict[str, Any]]], bool]:
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [_tensor("input", item) for item in graph.input if item.name not in constants]
    outputs = [_tensor("output", item) for item in graph.output]
    if not inputs:
        raise Invalid("its ONNX graph takes no input")
    batched = all(item["shape"] and item["shape"][0] == -1 for item in (*inputs, *outputs))
    for item in (*inputs, *outputs):
        if batched and len(item["shape"]) == 1:
            item["shape"] = [-1, 1]
        elif not item["shape"]:
            item["shape"] = [1]
    return {"inputs": inputs, "outputs": outputs}, batched


def _tensor(what: str, item: Any) -> dict[str, Any]:
    if not item.type.HasField("tensor_type"):
        raise Invalid(
            f"its {what} {item.name!r} is not a tensor (a map or sequence); convert it with "
            "options={'zipmap': False}"
        )
    tensor = item.type.tensor_type
    if tensor.elem_type not in DATATYPES:
        raise Invalid(f"its {what} {item.name!r} has an element type that cannot be served")
    if not tensor.HasField("shape"):
        raise Invalid(f"its {what} {item.name!r} does not say how many dimensions it has")
    shape = [dim.dim_value if dim.dim_value > 0 else -1 for dim in tensor.shape.dim]
    return {"name": item.name, "datatype": DATATYPES[tensor.elem_type], "shape": shape}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
