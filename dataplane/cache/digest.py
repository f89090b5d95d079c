"""The cache key of an answer: a 128-bit digest of everything that the answer depends on.

Two requests share a key only if the same version of the same model would get the same tensors,
parameters and requested outputs for the same tenant, in whatever form they were sent. Every part
has a length prefix, so that no two lists of parts give the same bytes.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

import msgspec
from xxhash import xxh3_128_digest

from contract.routing import ModelRoute, Signature, VersionRoute
from dataplane.codec import InferRequest

# Increased when the meaning of keys or stored values changes, so that old entries are never read.
SCHEMA = 1
_LENGTH = struct.Struct("<Q")


def join(parts: list[bytes]) -> bytes:
    """Return `parts` concatenated, each with a length prefix."""
    return b"".join([piece for part in parts for piece in (_LENGTH.pack(len(part)), part)])


def scope_digest(
    name: str, version: str, route: ModelRoute, versioned: VersionRoute, baseline: str = ""
) -> bytes:
    """Return 16 bytes that identify a version of a model and its deployment on its cluster.

    The `baseline` of a rollout has a digest of its own.
    """
    parts = [
        b"%d" % SCHEMA,
        name.encode(),
        version.encode(),
        versioned.cluster.encode(),
        versioned.triton_model.encode(),
        versioned.triton_version.encode(),
        # A version that was deleted and registered again may have the number of the old one.
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
        # The outputs of a request for all of them, in order.
        self._all = tuple(range(len(signature.outputs)))

    def __call__(self, request: InferRequest) -> bytes:
        """Return 16 bytes that identify the content of `request`."""
        # Whether an output is sent as JSON or as binary data is the form of an answer and not part
        # of its content.
        outputs = self._all if request.outputs is None else tuple(i for i, _ in request.outputs)
        parts = [struct.pack(f"<Q{len(outputs)}Q", request.rows, *outputs), request.parameters]
        for names, inner, tensor in zip(self._names, request.inner, request.tensors, strict=True):
            parts += (names, struct.pack(f"<{len(inner)}Q", *inner), tensor)
        return _strong(join(parts))


def key_of(scope: bytes, content: bytes, tenant: str) -> bytes:
    """Return the key. Scope and content have a fixed length, so the rest is the tenant's name."""
    if tenant:
        return xxh3_128_digest(scope + content + tenant.encode())
    return xxh3_128_digest(scope + content)


def _strong(data: bytes) -> bytes:
    # Clients choose the content, and collisions of xxh3 can be made on purpose: they would give
    # other clients a wrong answer.
    return blake2b(data, digest_size=16).digest()
