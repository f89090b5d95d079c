"""Cache keys: everything that an answer depends on changes the key, and nothing else does."""

from __future__ import annotations

import json
import struct
from itertools import product

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.routing import Signature, Tensor, UnitKey, VersionRoute
from dataplane.cache.digest import ContentDigest, join, key_of, scope_digest
from dataplane.codec import Codec, InferRequest
from tests.dataplane.worlds import model

PAIR = Signature(
    inputs=(
        Tensor(name="x", datatype="FP32", shape=(-1, -1)),
        Tensor(name="y", datatype="BYTES", shape=(-1, 1)),
    ),
    outputs=(
        Tensor(name="a", datatype="FP32", shape=(-1, 1)),
        Tensor(name="b", datatype="FP32", shape=(-1, 1)),
    ),
)
CODEC = Codec(PAIR, UnitKey(), batched=True, rows_max=8)
CONTENT = ContentDigest(PAIR)
SCOPE = b"s" * 16
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda f: f + 0.0)


def requests(rows, inner, data, strings, parameters, outputs):
    """Return one request, in varying forms, as a dict."""
    document = {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [rows, inner], "data": data},
            {"name": "y", "datatype": "BYTES", "shape": [rows, 1], "data": strings},
        ],
        "parameters": parameters,
    }
    if outputs is not None:
        document["outputs"] = [{"name": name} for name in outputs]
    return document


@st.composite
def documents(draw):
    rows, inner = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    return requests(
        rows,
        inner,
        draw(st.lists(FLOATS, min_size=rows * inner, max_size=rows * inner)),
        draw(st.lists(st.text("ab", max_size=2), min_size=rows, max_size=rows)),
        draw(st.dictionaries(st.sampled_from("pq"), st.integers(0, 2), max_size=2)),
        draw(st.sampled_from([None, ["a"], ["b"], ["b", "a"]])),
    )


def key(document, tenant="", scope=SCOPE):
    return key_of(scope, CONTENT(CODEC.read_infer(orjson.dumps(document))), tenant)


def meaning(document):
    """Return everything that the answer to `document` depends on, in a comparable form."""
    x, y = document["inputs"]
    data = struct.pack(f"<{len(x['data'])}f", *x["data"])
    parameters = tuple(sorted(document["parameters"].items()))
    outputs = tuple(
        item["name"] for item in document.get("outputs", [{"name": "a"}, {"name": "b"}])
    )
    return (tuple(x["shape"]), data, tuple(y["data"]), parameters, outputs)


@given(documents(), documents(), st.sampled_from(["", "t"]), st.sampled_from(["", "t"]))
def test_requests_share_a_key_exactly_if_they_are_equivalent(one, other, tenant, other_tenant):
    same = (meaning(one), tenant) == (meaning(other), other_tenant)
    assert (key(one, tenant) == key(other, other_tenant)) is same


def test_every_small_request_has_a_key_of_its_own():
    inputs = [
        (rows, inner, data, strings)
        for rows, inner in ((1, 1), (1, 2), (2, 1))
        for data in product((0.0, 1.0), repeat=rows * inner)
        for strings in product(("", "a", "aa"), repeat=rows)
    ]
    choices = product(inputs, ({}, {"p": 1}, {"p": True}, {"p": "1"}), (None, ["a"], ["b", "a"]))
    keys = [
        key(requests(rows, inner, list(data), list(strings), parameters, outputs), tenant)
        for (rows, inner, data, strings), parameters, outputs in choices
        for tenant in ("", "a", "aa")
    ]
    assert len(set(keys)) == len(keys) == 54 * 4 * 3 * 3


@given(documents(), st.randoms())
def test_formatting_order_and_nesting_do_not_change_a_key(document, random):
    x = document["inputs"][0]
    spelled = json.loads(json.dumps(document))
    whole = [int(value) if value == int(value) else value for value in x["data"]]
    rows, inner = x["shape"]
    spelled["inputs"][0]["data"] = [whole[i * inner : (i + 1) * inner] for i in range(rows)]
    spelled["inputs"].reverse()
    items = list(spelled["parameters"].items())
    random.shuffle(items)
    spelled["parameters"] = {**dict(items), "unit_id": "somebody"}
    text = json.dumps(dict(reversed(spelled.items())), indent=2).encode()
    assert key_of(SCOPE, CONTENT(CODEC.read_infer(text)), "") == key(document)


@given(documents())
def test_binary_tensors_have_the_key_of_json_tensors(document):
    x, y = document["inputs"]
    data = struct.pack(f"<{len(x['data'])}f", *x["data"])
    texts = b"".join(struct.pack("<I", len(t)) + t.encode() for t in y["data"])
    head = dict(document, parameters={**document["parameters"], "binary_data_output": True})
    head["inputs"] = [
        {k: v for k, v in item.items() if k != "data"}
        | {"parameters": {"binary_data_size": len(raw)}}
        for item, raw in ((x, data), (y, texts))
    ]
    text = orjson.dumps(head)
    request = CODEC.read_infer(text + data + texts, len(text))
    assert key_of(SCOPE, CONTENT(request), "") == key(document)


def test_the_same_bytes_in_another_shape_have_another_key():
    flat = b"\0" * 24
    keys = {CONTENT(InferRequest(2, [flat, b""], None, (inner, (1,)))) for inner in ((3,), (1, 3))}
    keys.add(CONTENT(InferRequest(3, [flat, b""], None, ((2,), (1,)))))
    assert len(keys) == 3


def test_tensor_boundaries_change_the_key():
    pairs = [(b"ab", b"c"), (b"a", b"bc"), (b"", b"abc"), (b"abc", b"")]
    keys = {CONTENT(InferRequest(1, list(pair), None, ((1,), (1,)))) for pair in pairs}
    assert len(keys) == 4


@given(st.lists(st.binary(max_size=3), max_size=4), st.lists(st.binary(max_size=3), max_size=4))
def test_different_lists_are_never_joined_to_the_same_bytes(one, other):
    assert (join(one) == join(other)) is (one == other)


def versioned_as(cluster="main", name="sums.1", number="1", created_at_ms=0):
    return VersionRoute(
        cluster=cluster, triton_model=name, triton_version=number, created_at_ms=created_at_ms
    )


ROUTE = model()
VERSION = ROUTE.versions["1"]


@pytest.mark.parametrize(
    ("name", "version", "route", "versioned"),
    [
        ("other", "1", ROUTE, VERSION),
        ("sums", "2", ROUTE, VERSION),
        ("sums", "1", model(batched=False), VERSION),
        ("sums", "1", model(signature=PAIR), VERSION),
        ("sums", "1", ROUTE, versioned_as(cluster="b")),
        ("sums", "1", ROUTE, versioned_as(name="s")),
        ("sums", "1", ROUTE, versioned_as(number="7")),
        ("sums", "1", ROUTE, versioned_as(created_at_ms=7)),
    ],
)
def test_versions_never_share_a_scope(name, version, route, versioned):
    first = scope_digest("sums", "1", ROUTE, VERSION)
    assert len(first) == 16
    assert scope_digest(name, version, route, versioned) != first
    assert scope_digest("sums", "1", model(), VERSION) == first


def test_a_key_has_128_bits_and_depends_on_the_scope():
    content = b"c" * 16
    keys = {key_of(scope * 16, content, tenant) for scope in (b"a", b"b") for tenant in ("", "x")}
    assert {len(key) for key in keys} == {16}
    assert len(keys) == 4
