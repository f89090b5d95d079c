"""The same tensors sent to a real Triton directly and through the data plane, by its clients.

Answers must be equal bit by bit: over HTTP and gRPC, in JSON and binary, alone and in batches.
"""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as by_grpc
import tritonclient.http as by_http
import tritonclient.http.aio as by_aio
from tritonclient.utils import InferenceServerException

from embedded.stack import running
from tests.dataplane.identities import CACHED, ROWS_MAX, SETS, data_plane, write

NUMPY = {
    "BOOL": np.bool_, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BF16": ml_dtypes.bfloat16,
}  # fmt: skip
NO_JSON = ("FP16", "BF16")
# Triton parses a third of all FP64 numbers in JSON with a wrong last bit.
INEXACT = (*NO_JSON, "FP64")


OPERATOR = {"authorization": "Bearer pager"}


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    state = tmp_path_factory.mktemp("identities")
    write(state / "triton" / "repository")
    with running(state, {"triton"}) as stack:
        triton = [f"127.0.0.1:{stack.ports[name]}" for name in ("triton_http", "triton_grpc")]
        with data_plane(state / "plane", *triton) as addresses:
            yield addresses


def draw(random, datatype, rows, width):
    """Return random bits that are a valid tensor of the datatype, including NaN and infinity."""
    if datatype == "BYTES":
        lengths = random.integers(0, 9, rows * width)
        words = ["".join(map(chr, random.integers(1, 0x700, n))).encode() for n in lengths]
        return np.array(words, dtype=object).reshape(rows, width)
    if datatype == "BOOL":
        return random.integers(0, 2, (rows, width)).astype(np.bool_)
    size = np.dtype(NUMPY[datatype]).itemsize
    bits = random.integers(0, 256, rows * width * size, dtype=np.uint8).view(NUMPY[datatype])
    bits = bits.reshape(rows, width)
    if datatype.startswith("FP"):
        # The payload of a NaN survives neither JSON nor the processor's conversions.
        bits = np.where(np.isnan(bits), np.array(np.nan, bits.dtype), bits)
    return bits


def request(kind, arrays, form, without_json=NO_JSON):
    """Return inputs and requested outputs for a client; `form` is binary, json or mixed."""
    inputs, outputs = [], []
    for i, (datatype, array) in enumerate(arrays.items()):
        tensor = kind.InferInput(datatype, list(array.shape), datatype)
        binary = form == "binary" or datatype in without_json or (form == "mixed" and i % 2 == 0)
        if kind is by_grpc:
            tensor.set_data_from_numpy(array)
            outputs.append(kind.InferRequestedOutput(f"y_{datatype}"))
        else:
            tensor.set_data_from_numpy(array, binary_data=binary)
            outputs.append(kind.InferRequestedOutput(f"y_{datatype}", binary_data=binary))
        inputs.append(tensor)
    return {"inputs": inputs, "outputs": outputs}


def bits_of(result, arrays):
    """Return the tensors of an answer as comparable values."""
    tensors = {name: result.as_numpy(f"y_{name}") for name in arrays}
    return {
        name: [item if isinstance(item, bytes) else item.encode() for item in array.ravel()]
        if name == "BYTES"
        else (array.dtype, array.shape, array.tobytes())
        for name, array in tensors.items()
    }


def cases(seed, count):
    """Yield (model, arrays) of random shapes."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        model = str(random.choice(sorted(SETS)))
        rows, width = int(random.integers(1, ROWS_MAX + 1)), int(random.integers(1, 7))
        yield model, {d: draw(random, d, rows, width) for d in SETS[model]}


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("form", ["binary", "json", "mixed"])
def test_http_gives_equal_tensors(addresses, form, compression):
    extras = {
        "request_compression_algorithm": compression,
        "response_compression_algorithm": compression,
    }
    with (
        by_http.InferenceServerClient(addresses.triton_http) as theirs,
        by_http.InferenceServerClient(addresses.ours_http) as ours,
    ):
        for model, arrays in cases(f"{form}{compression}".encode()[0], 40):
            expected = theirs.infer(model, **request(by_http, arrays, form, INEXACT))
            got = ours.infer(model, request_id="7", **request(by_http, arrays, form), **extras)
            assert bits_of(got, arrays) == bits_of(expected, arrays), model
            assert (got.get_response()["id"], got.get_response()["model_version"]) == ("7", "7")


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_grpc_gives_equal_tensors(addresses, compression):
    with (
        by_grpc.InferenceServerClient(addresses.triton_grpc) as theirs,
        by_grpc.InferenceServerClient(addresses.ours_grpc) as ours,
    ):
        for model, arrays in cases(5, 60):
            arguments = request(by_grpc, arrays, "binary")
            expected = theirs.infer(model, **arguments)
            got = ours.infer(model, request_id="7", **arguments, compression_algorithm=compression)
            assert bits_of(got, arrays) == bits_of(expected, arrays), model
            assert (got.get_response().id, got.get_response().model_version) == ("7", "7")


async def test_requests_in_shared_batches_get_the_same_answers(addresses):
    requests = list(cases(11, 300))
    async with by_aio.InferenceServerClient(addresses.ours_http, conn_limit=64) as client:

        async def ask(model, arrays, form):
            return bits_of(await client.infer(model, **request(by_aio, arrays, form)), arrays)

        forms = ["json", "binary", "mixed"]
        together = await asyncio.gather(*[ask(*c, forms[i % 3]) for i, c in enumerate(requests)])
        for (model, arrays), shared in zip(requests, together, strict=True):
            assert await ask(model, arrays, "binary") == shared, model


def test_cached_answers_are_bit_equal_to_tritons(addresses):
    requests = list(cases(17, 60))
    with (
        by_http.InferenceServerClient(addresses.triton_http) as theirs,
        by_http.InferenceServerClient(addresses.ours_http) as http,
        by_grpc.InferenceServerClient(addresses.ours_grpc) as grpc,
    ):
        for turn in range(3):
            for i, (model, arrays) in enumerate(requests):
                expected = theirs.infer(model, **request(by_http, arrays, "binary"))
                form = ("json", "binary", "mixed")[(i + turn) % 3]
                by, client = ((by_http, http), (by_grpc, grpc))[(i + turn) % 2]
                got = client.infer(CACHED + model, **request(by, arrays, form))
                assert bits_of(got, arrays) == bits_of(expected, arrays), model
    metrics = httpx.get(f"http://{addresses.ours_http}/metrics", headers=OPERATOR).text
    hits = re.findall(r"^interlock_cache_hits_total\{.*\} (\d+)$", metrics, re.MULTILINE)
    assert sum(map(int, hits)) >= 2 * len(requests)


def test_http_and_grpc_share_batches(addresses):
    requests = [(model, arrays) for model, arrays in cases(13, 200)]
    with by_grpc.InferenceServerClient(addresses.ours_grpc) as client:

        def ask(case):
            return bits_of(client.infer(case[0], **request(by_grpc, case[1], "binary")), case[1])

        with ThreadPoolExecutor(32) as threads:
            together = list(threads.map(ask, requests))
        assert together == [ask(case) for case in requests]


@pytest.mark.parametrize("kind", [by_http, by_grpc])
def test_other_requests_of_a_client(addresses, kind):
    address = addresses.ours_http if kind is by_http else addresses.ours_grpc
    with kind.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("real")
        assert client.is_model_ready("real", "7")
        assert not client.is_model_ready("nothing")
        assert client.get_server_metadata()
        assert client.get_model_metadata("text", "7")
        assert client.get_model_config("text", headers=OPERATOR)
        assert client.get_inference_statistics("text", headers=OPERATOR)
        with pytest.raises(InferenceServerException, match="control plane"):
            client.get_model_repository_index()


@pytest.mark.parametrize("direction", ["receiving", "sending"])
def test_bfloat16_in_json_is_refused_with_tritons_message(addresses, direction):
    array = np.ones((1, 2), ml_dtypes.bfloat16)
    tensor = by_http.InferInput("BF16", [1, 2], "BF16")
    tensor.set_data_from_numpy(array)
    if direction == "receiving":
        tensor._raw_data, tensor._data = None, [1.0, 1.0]
        tensor._parameters.clear()
    outputs = [by_http.InferRequestedOutput("y_BF16", binary_data=direction == "receiving")]
    for address in (addresses.triton_http, addresses.ours_http):
        with (
            by_http.InferenceServerClient(address) as client,
            pytest.raises(InferenceServerException, match=f"{direction} BF16 data via JSON is not"),
        ):
            client.infer("brain", [tensor], outputs=outputs)
