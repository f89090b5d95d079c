"""Inspects an ONNX file: its signature, whether ONNX Runtime can serve it, and trial requests.

Runs as a separate process, `python -m apps.models.inspection FILE MEMORY_BYTES CPU_S TRIAL_S`, so
that a hostile, broken or huge file cannot kill a worker. Prints one JSON document: `refused` with
the reason, or the fields of `apps.models.artifacts.Artifact`. Must not import Django.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from apps.models.batchability import (
    TRIAL_S,
    Session,
    Tensor,
    Trial,
    Unfinished,
    is_out_of_memory,
    try_out,
)

ONNX_BYTES_MAX = 2 * 1024**3 - 1
ALIGNMENT = 4096
DATA_FILE = "model.onnx.data"
REASON_MAX = 400
PR_SET_PDEATHSIG = 1

# ONNX element types to OIP datatypes; the others have no numpy form for Triton's Python backend.
DATATYPES = {
    "float": "FP32",
    "uint8": "UINT8",
    "int8": "INT8",
    "uint16": "UINT16",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "string": "BYTES",
    "bool": "BOOL",
    "float16": "FP16",
    "double": "FP64",
    "uint32": "UINT32",
    "uint64": "UINT64",
}


class Refused(Exception):
    """The file cannot be served; the message starts with "it" or "its"."""


def inspect(path: Path, trial_s: float = TRIAL_S) -> dict[str, Any]:
    """Return the document for `path`; merge external data into the file. Raises Refused."""
    proto = _read(path)
    data_file = _gather_external_data(proto, path)
    _check_kinds(proto.graph)
    ranked = {
        item.name
        for item in (*proto.graph.input, *proto.graph.output)
        if item.type.tensor_type.HasField("shape")
    }
    # The session holds the weights now; a second copy could exceed the memory.
    del proto
    session = _open(path)
    inputs = [_tensor("input", item, ranked) for item in session.get_inputs()]
    outputs = [_tensor("output", item, ranked) for item in session.get_outputs()]
    if not inputs:
        raise Refused("its ONNX graph takes no input")
    if any(tensor.dims is None for tensor in inputs):
        name = next(tensor.name for tensor in inputs if tensor.dims is None)
        raise Refused(f"its input {name!r} does not declare its number of dimensions")
    try:
        trial = try_out(session, inputs, outputs, trial_s)
    except Unfinished as error:
        raise Refused(str(error)) from error
    return {**_document(inputs, outputs, trial), "data_file": data_file}


def _document(inputs: list[Tensor], outputs: list[Tensor], trial: Trial) -> dict[str, Any]:
    shapes = dict(trial.output_shapes)
    for tensor in outputs:
        if tensor.name not in shapes:
            if tensor.dims is None:
                name = tensor.name
                raise Refused(f"its output {name!r} does not declare its number of dimensions")
            shapes[tensor.name] = tensor.shape
    return {
        "batched": trial.batched,
        "signature": {
            "inputs": [_served(t, t.shape, trial.batched) for t in inputs],
            "outputs": [_served(t, shapes[t.name], trial.batched) for t in outputs],
        },
        "warmup": trial.warmup,
        "trial_ms": trial.took_ms,
    }


def _served(tensor: Tensor, shape: list[int], batched: bool) -> dict[str, Any]:
    """Return a tensor as Triton serves it: scalars and pure batch dimensions get a size of 1."""
    if not shape:
        shape = [1]
    elif batched and len(shape) == 1:
        shape = [-1, 1]
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": shape}


# --- the file ------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    import onnx

    if path.stat().st_size > ONNX_BYTES_MAX:
        raise Refused("its ONNX file is larger than 2 GB; save its weights as external data")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except MemoryError:
        raise
    except Exception as error:  # of protobuf, or caused by a malformed file
        raise Refused(f"its ONNX file is damaged: {_error_text(error, path)}") from error
    if not proto.graph.node and not proto.graph.output:
        raise Refused("its ONNX file is damaged: it contains no graph")
    return proto


def _gather_external_data(proto: Any, path: Path) -> str:
    """Merge external data into the file, or into one data file if the result would be too large.

    Returns the name of the data file, or an empty string. Raises Refused.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor

    external = [t for t in _all_tensors(proto) if t.data_location == onnx.TensorProto.EXTERNAL]
    if not external:
        return ""
    sizes = [_external_size(tensor, path) for tensor in external]
    if sum(sizes) + proto.ByteSize() > ONNX_BYTES_MAX:
        _gather_beside(external, sizes, path)
        path.write_bytes(proto.SerializeToString())
        return DATA_FILE
    for tensor in external:
        load_external_data_for_tensor(tensor, str(path.parent))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    path.write_bytes(proto.SerializeToString())
    return ""


def _all_tensors(proto: Any) -> Iterable[Any]:
    graphs = [proto.graph, *proto.functions]
    while graphs:
        graph = graphs.pop()
        yield from getattr(graph, "initializer", ())
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                yield from attribute.tensors
                graphs.extend(attribute.graphs)


def _entries(tensor: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _external_size(tensor: Any, path: Path) -> int:
    """Return the size in bytes of the external data of `tensor`. Raises Refused."""
    entries = _entries(tensor)
    name = entries.get("location", "")
    if not name or Path(name).name != name:
        raise Refused(f"its external data is in {name!r}, not in the directory of the ONNX file")
    file = path.with_name(name)
    if file.is_symlink() or not file.is_file():
        raise Refused(
            f"its external data file {name} is missing: "
            "it must be in the directory of the ONNX file"
        )
    offset, size = int(entries.get("offset", 0)), file.stat().st_size
    length = int(entries.get("length", size - offset))
    if offset < 0 or length < 0 or offset + length > size:
        raise Refused(f"its external data file {name} has {size} bytes: {tensor.name} is cut off")
    return length


def _gather_beside(external: list[Any], sizes: list[int], path: Path) -> None:
    """Copy the data of all tensors into one file in chunks, and update their references."""
    gathered = path.with_name(f"{DATA_FILE}.new")
    with gathered.open("wb") as target:
        for tensor, size in zip(external, sizes, strict=True):
            entries = _entries(tensor)
            # The file is memory-mapped: align to pages.
            target.seek(-target.tell() % ALIGNMENT, 1)
            offset, left = target.tell(), size
            with path.with_name(entries["location"]).open("rb") as source:
                source.seek(int(entries.get("offset", 0)))
                while left and (chunk := source.read(min(left, 1 << 24))):
                    target.write(chunk)
                    left -= len(chunk)
            del tensor.external_data[:]
            for key, value in {"location": DATA_FILE, "offset": offset, "length": size}.items():
                tensor.external_data.add(key=key, value=str(value))
    gathered.replace(path.with_name(DATA_FILE))


# --- inputs and outputs --------------------------------------------------------------------------


def _check_kinds(graph: Any) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    for what, items in (("input", graph.input), ("output", graph.output)):
        for item in items:
            kind = item.type.WhichOneof("value")
            if item.name in constants or kind in ("tensor_type", None):
                continue
            kind_name = {"sequence_type": "a sequence", "map_type": "a map"}.get(
                kind, f"a value of kind {kind.removesuffix('_type')}"
            )
            raise Refused(
                f"its {what} {item.name!r} is {kind_name}, not a tensor; convert scikit-learn "
                "classifiers with options={'zipmap': False}"
            )


def _open(path: Path) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session: Session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except MemoryError:
        raise
    except Exception as error:  # onnxruntime raises RuntimeError and many other classes
        if is_out_of_memory(error):
            raise MemoryError from error
        raise Refused(f"ONNX Runtime cannot load it: {_error_text(error, path)}") from error
    return session


def _tensor(what: str, item: Any, ranked: set[str]) -> Tensor:
    match = re.fullmatch(r"tensor\((\w+)\)", item.type)
    if match is None:
        raise Refused(f"its {what} {item.name!r} is not a tensor but {item.type}")
    if match[1] not in DATATYPES:
        raise Refused(
            f"its {what} {item.name!r} has the element type {match[1]}, which cannot be served; "
            f"it may be {', '.join(DATATYPES)}"
        )
    # ONNX Runtime reports scalars and unknown ranks alike; the file distinguishes them.
    dims = list(item.shape) if item.shape or item.name in ranked else None
    return Tensor(item.name, DATATYPES[match[1]], dims)


def _error_text(error: Exception, path: Path) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : (\w+) : ", "", text)
    # Remove positions in the source of ONNX Runtime.
    text = re.sub(r"/onnxruntime_src/\S+ [^)]*\) (const )?", "", text)
    return text.replace(str(path), path.name)[:REASON_MAX]


# --- the process ---------------------------------------------------------------------------------


def main(argv: list[str]) -> NoReturn:
    path, memory_bytes, cpu_s = Path(argv[1]), int(argv[2]), int(argv[3])
    # This process ends when its worker is killed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    try:
        document = inspect(path, float(argv[4]))
    except Refused as refusal:
        document = {"refused": str(refusal)}
    except MemoryError:
        document = {"refused": f"it needs more than {memory_bytes:,} bytes of memory to load"}
    sys.stdout.write(json.dumps(document, allow_nan=False))
    sys.stdout.flush()
    # A trial that ignores `terminate` still runs, and an orderly exit would wait for it.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv)
