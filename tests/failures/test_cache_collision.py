"""[2,3] and [3,2] tensors of the same bytes shared a cache entry (triton core `cache_manager.cc`).

Here a key includes the shape, the datatype, the parameters and the requested outputs.
"""

from __future__ import annotations

import orjson
import pytest

from contract.routing import Signature, Tensor, UnitKey
from dataplane.cache.digest import ContentDigest, key_of
from dataplane.codec import Codec

PLAIN = Signature(
    inputs=(Tensor(name="x", datatype="FP32", shape=(-1, -1)),),
    outputs=tuple(Tensor(name=name, datatype="FP32", shape=(-1, 1)) for name in "ab"),
)
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [1.0] * 6}]}


def key(signature=PLAIN, **changes):
    codec = Codec(signature, UnitKey(), batched=True, rows_max=8)
    content = ContentDigest(signature)
    request = codec.read_infer(orjson.dumps({**BODY, **changes}))
    return key_of(b"s" * 16, content(request), "")


def test_the_same_bytes_in_another_shape_have_another_key():
    other = [{**BODY["inputs"][0], "shape": [3, 2]}]
    assert key() == key()
    assert key() != key(inputs=other)


@pytest.mark.parametrize("changes", [{"outputs": [{"name": "a"}]}, {"parameters": {"k": 1}}])
def test_other_outputs_or_parameters_have_another_key(changes):
    assert key() != key(**changes)
