"""The key of an answer: whatever the answer depends on, as 128 bits.

Two requests share a key only if the same version of the same model would see the same tensors,
parameters and requested outputs for the same tenant. How a request spelled them does not matter.
Every part has its length before it, so that no two lists of parts are the same bytes.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

import msgspec
from xxhash import xxh3_128_digest

from contract.routing import ModelRoute, Signature, VersionRoute
from dataplane.codec import InferRequest

# Goes up when a key or a stored value changes its meaning, so that old entries are never read.
SCHEMA = 1
_LENGTH = struct.Struct("<Q")


def join(parts: list[bytes]) -> bytes:
    """Return `parts` one after the other, each with its length before it."""
    return b"".join([piece for part in parts for piece in (_LENGTH.pack(len(part)), part)])


def scope_digest(
    name: str, version: str, route: ModelRoute, versioned: VersionRoute, baseline: str = ""
) -> bytes:
    """Return 16 bytes that stand for a version of a model and its identity on its cluster.

    The `baseline` of a rollout on it has others.
    """
    parts = [
        b"%d" % SCHEMA,
        name.encode(),
        version.encode(),
        versioned.cluster.encode(),
        versioned.triton_model.encode(),
        versioned.triton_version.encode(),
        # A version that was deleted and registered anew may have the number of the old one.
        b"%d" % versioned.created_at_ms,
        msgspec.json.encode(route.signature),
        b"%d" % route.batched,
    ]
    if baseline:
        parts.append(baseline.encode())
    return _strong(join(parts))


class ContentDigest:
    """Digests the content of one model's requests: tensors, parameters, requested outputs."""

    __slots__ = ("_all", "_names")

    def __init__(self, signature: Signature) -> None:
        # Name and datatype of each input, ready to be digested.
        self._names = [
            join([tensor.name.encode(), tensor.datatype.encode()]) for tensor in signature.inputs
        ]
        # What stands for a request that wants all outputs, in their order.
        self._all = tuple(range(len(signature.outputs)))

    def __call__(self, request: InferRequest) -> bytes:
        """Return 16 bytes that stand for what `request` asks."""
        # Whether an output travels as JSON or as binary data is the form of an answer and not
        # part of it.
        wanted = self._all if request.outputs is None else tuple(i for i, _ in request.outputs)
        parts = [struct.pack(f"<Q{len(wanted)}Q", request.rows, *wanted), request.parameters]
        for names, inner, tensor in zip(self._names, request.inner, request.tensors, strict=True):
            parts += (names, struct.pack(f"<{len(inner)}Q", *inner), tensor)
        return _strong(join(parts))


def key_of(scope: bytes, content: bytes, tenant: str) -> bytes:
    """Return the key. Scope and content have a fixed length, so the rest is the tenant's name."""
    if tenant:
        return xxh3_128_digest(scope + content + tenant.encode())
    return xxh3_128_digest(scope + content)


def _strong(data: bytes) -> bytes:
    # Anybody may choose the content, and collisions of xxh3 can be made on purpose: whoever made
    # one would have others answered with the answer to something else.
    return blake2b(data, digest_size=16).digest()
