"""Identity models for a real Triton, one per set of datatypes, and a data plane for them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from contract.routing import (
    Batching,
    Cache,
    Cluster,
    ModelRoute,
    RoutingTable,
    Signature,
    Tensor,
    VersionRoute,
    encode,
)
from embedded.ports import is_free

SETS = {
    "whole": ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL"],
    "real": ["FP16", "FP32", "FP64"],
    "brain": ["BF16"],
    "text": ["BYTES"],
}
ROWS_MAX = 8
CACHED = "cached-"
MODEL = """import json

import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.names = [item["name"] for item in config["input"]]

    def execute(self, requests):
        return [pb.InferenceResponse([self.copy(r, n) for n in self.names]) for r in requests]

    def copy(self, request, name):
        tensor = pb.get_input_tensor_by_name(request, name)
        if name == "BF16":
            return pb.Tensor.from_dlpack("y_BF16", tensor.to_dlpack())
        return pb.Tensor("y_" + name, tensor.as_numpy())
"""


@dataclass(frozen=True)
class Addresses:
    """The HTTP and gRPC addresses of Triton and of the data plane."""

    triton_http: str
    triton_grpc: str
    ours_http: str
    ours_grpc: str


def write(repository: Path) -> None:
    """Put the models into a Triton repository."""
    for name, datatypes in SETS.items():
        version = repository / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(MODEL)
        lines = [f'name: "{name}"', 'backend: "python"', f"max_batch_size: {ROWS_MAX}"]
        for datatype in datatypes:
            triton_type = "TYPE_" + ("STRING" if datatype == "BYTES" else datatype)
            for kind, title in (("input", datatype), ("output", f"y_{datatype}")):
                lines.append(
                    f'{kind} [ {{ name: "{title}" data_type: {triton_type} dims: [ -1 ] }} ]'
                )
        (repository / name / "config.pbtxt").write_text("\n".join(lines))


def table(triton_http: str) -> bytes:
    """Return a table that serves each model as its version 7, and once more with a cache."""
    models = {
        f"{prefix}{name}": ModelRoute(
            signature=Signature(
                inputs=tuple(Tensor(name=d, datatype=d, shape=(-1, -1)) for d in datatypes),
                outputs=tuple(Tensor(name=f"y_{d}", datatype=d, shape=(-1, -1)) for d in datatypes),
            ),
            stable="7",
            versions={"7": VersionRoute(cluster="main", triton_model=name, triton_version="1")},
            batching=Batching(max_batch_size=ROWS_MAX),
            timeout_ms=20_000,
            cache=cache,
        )
        for name, datatypes in SETS.items()
        for prefix, cache in (("", None), (CACHED, Cache(ttl_s=600)))
    }
    clusters = {"main": Cluster(endpoints=(triton_http,))}
    return encode(RoutingTable(generation=1, models=models, clusters=clusters))


@contextmanager
def data_plane(
    folder: Path, triton_http: str, triton_grpc: str, stored: bytes | None = None
) -> Iterator[Addresses]:
    """Run a data plane that starts from a stored table and has only Triton."""
    folder.mkdir()
    (folder / "routing-table.json").write_bytes(stored or table(triton_http))
    http_port, grpc_port = _two_free_ports()
    settings = {
        "INTERLOCK_BIND": f"127.0.0.1:{http_port}",
        "INTERLOCK_GRPC_BIND": f"127.0.0.1:{grpc_port}",
        "INTERLOCK_CONTROL_URL": "http://127.0.0.1:9",
        "INTERLOCK_INSTANCE_TOKEN": "none",
        "INTERLOCK_INSTANCE_NAME": "differential",
        "INTERLOCK_STATE_DIR": str(folder),
        "INTERLOCK_OPERATOR_TOKEN": "pager",
        "INTERLOCK_STOP_TIMEOUT_S": "2",
        "INTERLOCK_WORKERS": "1",
        "REDIS_URL": "redis://127.0.0.1:9",
    }
    command = [sys.executable, "-m", "dataplane"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **settings}, stderr=log)
    try:
        _wait_until_ready(f"http://127.0.0.1:{http_port}/v2/health/ready", folder / "log")
        ours = (f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}")
        yield Addresses(triton_http, triton_grpc, *ours)
    finally:
        process.terminate()
        process.wait()


def _two_free_ports() -> list[int]:
    start = 30_000 + os.getpid() % 10_000
    free = (port for port in range(start, 60_000) if is_free(port))
    return [next(free), next(free)]


def _wait_until_ready(url: str, log: Path) -> None:
    for _ in range(400):
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(log.read_text()[-4_000:])
