"""Messages between a worker and its reading process."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from contract.messages import Outcome
from dataplane.codec import Codec, InferRequest, Spec
from dataplane.errors import Refusal

Kind = Literal["infer", "plain", "outcomes", "grpc"]


class Job(msgspec.Struct, array_like=True, kw_only=True):
    """One body to read. `coding` is empty if it is not compressed.

    `bytes_max` limits its decompressed size. `spec` is that of the model, which a plain request
    names in its body. `header_length` belongs to the binary extension. `now_ms` and `id_prefix` are
    for outcomes.
    """

    kind: Kind
    body: bytes
    coding: bytes = b""
    bytes_max: int
    header_length: bytes | None = None
    spec: Spec | None = None
    now_ms: int = 0
    id_prefix: str = ""


class Tensors(msgspec.Struct, array_like=True):
    """An `InferRequest` without its key, which the codec creates again."""

    rows: int
    tensors: list[bytes]
    inner: tuple[tuple[int, ...], ...]
    id: str | None
    unit: str | None
    outputs: tuple[tuple[int, bool], ...] | None
    binary: bool
    parameters: bytes

    @classmethod
    def of(cls, request: InferRequest) -> Tensors:
        return cls(
            request.rows,
            request.tensors,
            request.inner,
            request.id,
            request.unit,
            request.outputs,
            request.binary,
            request.parameters,
        )

    def request(self, codec: Codec) -> InferRequest:
        return InferRequest(
            rows=self.rows,
            tensors=self.tensors,
            key=codec.key(self.inner, self.parameters),
            inner=self.inner,
            id=self.id,
            unit=self.unit,
            outputs=self.outputs,
            binary=self.binary,
            parameters=self.parameters,
        )


class Done(msgspec.Struct, array_like=True, kw_only=True):
    """The content of a body, and its decompressed size.

    `version`, `user` and `request_id` are those of a plain request, as received.
    """

    length: int
    tensors: Tensors | None = None
    outcomes: list[Outcome] | None = None
    refused: list[dict[str, object]] | None = None
    version: Any = None
    user: Any = None
    request_id: Any = None


def too_complex() -> Refusal:
    """Return the refusal of a body that needs more memory or time than allowed."""
    return Refusal(
        413, "too_complex", "reading the body needs more memory or time than a request may use"
    )


class Refused(msgspec.Struct, array_like=True):
    """A serialised `Refusal`."""

    status: int
    code: str
    message: str
    retry_after_s: int | None
    details: list[dict[str, Any]] | None

    @classmethod
    def of(cls, refusal: Refusal) -> Refused:
        return cls(
            refusal.status,
            refusal.code,
            refusal.message,
            refusal.retry_after_s,
            refusal.details,
        )

    def refusal(self) -> Refusal:
        return Refusal(
            self.status,
            self.code,
            self.message,
            retry_after_s=self.retry_after_s,
            details=self.details,
        )
