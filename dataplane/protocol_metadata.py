"""The metadata of the server and its models, for HTTP and gRPC.

All of it comes from the routing table and the counters of this process: no model server is queried.
The readiness of a model is that of the version that would answer.
"""

from __future__ import annotations

from contract.routing import Tensor
from dataplane import VERSION
from dataplane.errors import Refusal
from dataplane.metrics import VersionStats
from dataplane.serving import LiveModel, Serving

EXTENSIONS = ["binary_tensor_data", "parameters", "model_configuration", "statistics"]
# Paths of Triton that a client library may call, and why they are not supported.
_ELSEWHERE = {
    "repository": "models are loaded and unloaded by the control plane",
    "systemsharedmemory": "shared memory is not possible through a proxy",
    "cudasharedmemory": "shared memory is not possible through a proxy",
    "trace": "tracing is a setting of the model servers",
    "logging": "logging is a setting of the model servers",
}


def server_metadata() -> dict[str, object]:
    """Return the response of `GET /v2`."""
    return {"name": "interlock", "version": VERSION, "extensions": EXTENSIONS}


def check_ready(model: LiveModel, version: str | None) -> None:
    """Raise Refusal unless a version would answer."""
    if version is None:
        model.router.decide(None)
    else:
        model.router.explicit(version)


def model_metadata(model: LiveModel, version: str | None) -> dict[str, object]:
    """Return names, datatypes and shapes. Raises Refusal for a version that is not served."""
    if version is not None:
        model.router.explicit(version)
    signature = model.route.signature
    return {
        "name": model.name,
        "versions": sorted(model.route.versions) if version is None else [version],
        "platform": "interlock",
        "inputs": [_tensor(tensor) for tensor in signature.inputs],
        "outputs": [_tensor(tensor) for tensor in signature.outputs],
    }


def model_config(model: LiveModel, version: str | None) -> dict[str, object]:
    """Return the parts of a Triton configuration that are the same for all versions."""
    if version is not None:
        model.router.explicit(version)
    route = model.route
    batched = route.batched
    config: dict[str, object] = {
        "name": model.name,
        "platform": "interlock",
        "backend": "",
        "max_batch_size": route.batching.max_batch_size if batched else 0,
        "input": [_configured(tensor, batched) for tensor in route.signature.inputs],
        "output": [_configured(tensor, batched) for tensor in route.signature.outputs],
    }
    if batched:
        delay_us = route.batching.max_queue_delay_us
        config["dynamic_batching"] = {"max_queue_delay_microseconds": delay_us}
    return config


def model_statistics(serving: Serving, name: str | None, version: str | None) -> dict[str, object]:
    """Return the counters of this process for each version. Raises Refusal."""
    if name is not None:
        model = serving.model(name)
        if version is not None:
            model.router.explicit(version)
    rows = [
        _statistics(item[0], item[1], item[2])
        for item in serving.stats()
        if name in (None, item[0]) and version in (None, item[1])
    ]
    return {"model_stats": rows}


def unsupported_path(parts: list[str]) -> Refusal | None:
    """Return the refusal of a path (its parts after `/v2`) that only a model server has."""
    reason = _ELSEWHERE.get(parts[0]) if parts else None
    return None if reason is None else Refusal(501, "not_supported", reason)


def _statistics(name: str, version: str, stats: VersionStats) -> dict[str, object]:
    latency = stats.latency
    failed = sum(stats.predictions.get(status, 0) for status in ("error", "fallback", "rejected"))
    return {
        "name": name,
        "version": version,
        "inference_count": int(stats.batch_size.sum),
        "execution_count": sum(stats.batch_size.counts),
        "inference_stats": {
            "success": {"count": sum(latency.counts), "ns": int(latency.sum * 1e9)},
            "fail": {"count": failed, "ns": 0},
        },
    }


def _tensor(tensor: Tensor) -> dict[str, object]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _configured(tensor: Tensor, batched: bool) -> dict[str, object]:
    datatype = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    dims = list(tensor.shape[1:] if batched else tensor.shape)
    return {"name": tensor.name, "data_type": f"TYPE_{datatype}", "dims": dims}
