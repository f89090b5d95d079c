"""What a worker and its reading process say to each other."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from contract.messages import Outcome
from dataplane.codec import Codec, InferRequest, Spec
from dataplane.errors import Refusal

Kind = Literal["infer", "plain", "outcomes", "grpc"]


class Job(msgspec.Struct, array_like=True, kw_only=True):
    """One body to read. `coding` is empty for one that is not packed.

    `bytes_max` bounds what it unpacks to. `spec` is the model's, which for a plain request stands
    in the body. `header_length` is the binary extension's. The last two are for outcomes.
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
    """An `InferRequest` as it travels: without its key, which the codec makes again."""

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
    """What a body held, and the bytes that it unpacked to.

    `version`, `user` and `request_id` are a plain request's, as they came.
    """

    length: int
    tensors: Tensors | None = None
    outcomes: list[Outcome] | None = None
    refused: list[dict[str, object]] | None = None
    version: Any = None
    user: Any = None
    request_id: Any = None


def too_complex() -> Refusal:
    """Return the refusal of a body that takes more memory or time than any may."""
    return Refusal(413, "too_complex", "reading the body takes more than a request may use")


class Refused(msgspec.Struct, array_like=True):
    """A `Refusal` as it travels."""

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
