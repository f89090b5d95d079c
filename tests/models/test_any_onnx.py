"""Every kind of ONNX model through import, real Triton and the data plane, bit for bit.

What onnxruntime gives for a file is what a user gets: nothing on the way changes a value, a shape
or a type, and nobody's rows touch anybody else's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as by_grpc
import tritonclient.http as by_http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from apps.models.inspection import inspect
from apps.models.models import ModelVersion, RegisteredModel, ServingCluster
from apps.models.repository import place_version
from apps.models.triton import Endpoint
from contract.routing import (
    Batching,
    Cluster,
    ModelRoute,
    RoutingTable,
    Signature,
    VersionRoute,
    encode,
)
from embedded.stack import running
from tests.dataplane.identities import Addresses, data_plane
from tests.models.onnx_zoo import KINDS, Array, Kind, save

BATCH_MAX = 8


@dataclass(frozen=True)
class Place:
    """The endpoints of the models and the files of each."""

    addresses: Addresses
    versions: dict[str, ModelVersion]


def version_of(name: str, path: Path) -> ModelVersion:
    """Return a version as an import records it."""
    document = inspect(path)
    return ModelVersion(
        model=RegisteredModel(name=name, max_batch_size=BATCH_MAX),
        number=3,
        signature=document["signature"],
        batched=document["batched"],
        warmup=document["warmup"],
        artifact_path=str(path),
        artifact_sha256=name,
    )


def table_of(versions: dict[str, ModelVersion], triton_http: str) -> bytes:
    models = {
        name: ModelRoute(
            signature=msgspec.convert(version.signature, Signature),
            stable="3",
            versions={
                "3": VersionRoute(
                    cluster="main",
                    triton_model=f"{name}.3",
                    triton_version="3",
                    warmup=json.dumps(version.warmup) if version.warmup else "",
                )
            },
            batched=version.batched,
            batching=Batching(max_batch_size=BATCH_MAX),
            timeout_ms=20_000,
        )
        for name, version in versions.items()
    }
    clusters = {"main": Cluster(endpoints=(triton_http,))}
    return encode(RoutingTable(generation=1, models=models, clusters=clusters))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    state = tmp_path_factory.mktemp("zoo")
    cluster = ServingCluster(name="main", repository_path=str(state / "triton" / "repository"))
    versions = {
        name: version_of(name, save(kind, state / "artifacts" / name))
        for name, kind in KINDS.items()
    }
    with running(state, {"triton"}) as stack:
        endpoint = Endpoint(stack.urls.triton)
        for version in versions.values():
            place_version(version, cluster)
            endpoint.load(version)
        triton = [f"127.0.0.1:{stack.ports[name]}" for name in ("triton_http", "triton_grpc")]
        table = table_of(versions, triton[0])
        with data_plane(state / "plane", *triton, stored=table) as addresses:
            yield Place(addresses, versions)


def directly(kind: Kind, path: str, inputs: dict[str, Array] | None = None) -> dict[str, Array]:
    """Return the outputs of onnxruntime, in shapes that Triton supports."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    arrays = session.run(names, dict(inputs or kind.inputs))
    return {name: served(array, kind) for name, array in zip(names, arrays, strict=True)}


def served(array: Any, kind: Kind) -> Array:
    array = np.asarray(array)
    if array.ndim == 0:
        return array.reshape(1)
    return array.reshape(-1, 1) if kind.batched and array.ndim == 1 else array


def request(by: Any, kind: Kind, outputs: list[str], *, binary: bool = True) -> dict[str, Any]:
    inputs = []
    for name, array in kind.inputs.items():
        shaped = served(array, kind)
        item = by.InferInput(name, list(shaped.shape), np_to_triton_dtype(shaped.dtype))
        item.set_data_from_numpy(shaped, **({} if by is by_grpc else {"binary_data": binary}))
        inputs.append(item)
    form = {} if by is by_grpc else {"binary_data": binary}
    return {"inputs": inputs, "outputs": [by.InferRequestedOutput(n, **form) for n in outputs]}


def bits(arrays: dict[str, Array]) -> dict[str, Any]:
    return {name: (array.shape, values(array)) for name, array in arrays.items()}


def values(array: Array) -> Any:
    if array.dtype != object:
        return str(array.dtype), array.tobytes()
    return [item if isinstance(item, str) else item.decode() for item in array.ravel()]


@pytest.mark.parametrize("name", KINDS)
def test_the_signature_is_read(place: Place, name: str) -> None:
    assert place.versions[name].batched == KINDS[name].batched


@pytest.mark.parametrize("name", KINDS)
def test_triton_and_the_data_plane_agree_with_onnxruntime(place: Place, name: str) -> None:
    kind, version = KINDS[name], place.versions[name]
    expected = directly(kind, version.artifact_path)
    addresses = place.addresses
    ways = [
        (by_http, addresses.triton_http, f"{name}.3"),
        (by_http, addresses.ours_http, name),
        (by_grpc, addresses.ours_grpc, name),
    ]
    for by, address, model in ways:
        with by.InferenceServerClient(address) as client:
            got = client.infer(model, **request(by, kind, list(expected)))
        assert bits({n: got.as_numpy(n) for n in expected}) == bits(expected), (by, address)


@pytest.mark.parametrize("name", KINDS)
def test_json_returns_the_same(place: Place, name: str) -> None:
    kind, version = KINDS[name], place.versions[name]
    expected = directly(kind, version.artifact_path)
    types = {t["name"]: t for t in version.signature["inputs"]}
    inputs = [
        {
            "name": item,
            "datatype": types[item]["datatype"],
            "shape": list(served(array, kind).shape),
            "data": array.ravel().tolist(),
        }
        for item, array in kind.inputs.items()
    ]
    url = f"http://{place.addresses.ours_http}/v2/models/{name}/infer"
    answer = httpx.post(url, json={"inputs": inputs}).json()
    for item in answer["outputs"]:
        reference = expected[item["name"]]
        got = np.array(item["data"], dtype=reference.dtype).reshape(item["shape"])
        assert (got.shape, values(got)) == (reference.shape, values(reference))


@pytest.mark.parametrize("name", KINDS)
def test_the_recorded_warm_up_is_answered(place: Place, name: str) -> None:
    version = place.versions[name]
    endpoint = Endpoint(f"http://{place.addresses.triton_http}")
    endpoint.answer(version, version.warmup[0] if version.warmup else None)


@pytest.mark.parametrize("name", KINDS)
async def test_requests_at_once_get_what_they_get_alone(place: Place, name: str) -> None:
    kind, version = KINDS[name], place.versions[name]
    outputs = [item["name"] for item in version.signature["outputs"]]
    body, headers = by_http.InferenceServerClient.generate_request_body(
        **request(by_http, kind, outputs)
    )
    url = f"http://{place.addresses.ours_http}/v2/models/{name}/infer"
    sent = {} if headers is None else {"inference-header-content-length": str(headers)}
    async with httpx.AsyncClient() as client:
        requests = [client.post(url, content=body, headers=sent) for _ in range(24)]
        answers = await asyncio.gather(*requests)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1


def test_invalid_utf8_is_a_client_error(place: Place) -> None:
    tensor = by_http.InferInput("x", [1, 2], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"\xff\xfe", b""]], dtype=object))
    client = by_http.InferenceServerClient(place.addresses.triton_http)
    with client, pytest.raises(InferenceServerException, match="not UTF-8") as refused:
        client.infer("text.3", [tensor])
    assert refused.value.status() == "400"
