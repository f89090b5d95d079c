"""Sends requests to each new version of a table before the table is applied.

Triton reports READY for a version whose process has crashed, so only a response proves that it
works. Each new (version, endpoint) gets the version's warm-up requests, or one request of zeros,
over the connections that live requests will use. Versions that are already served are not tested
again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from time import monotonic

import orjson

from contract.routing import ModelRoute, Name, RoutingTable, Tensor, VersionRoute
from dataplane.batch_reply import ReplyReader
from dataplane.codec import Codec, InferRequest
from dataplane.datatypes import DATATYPES
from dataplane.errors import Refusal
from dataplane.triton import Fault, Reply, Triton, TritonError

AT_ONCE = 16
# A few reasons are enough: a server that hangs must not delay the poll.
REASONS_MAX = 3
# Maximum seconds of one turn; a larger table continues at the next poll.
TURN_S = 30.0
# Seconds for which a response counts for a table that was refused because of another version.
FRESH_S = 60.0
# Models that are processed between two turns of the loop.
_SLICE = 16

# A healthy version may fail on zeros; only its owner knows valid inputs.
_HINT = (
    "the response to one row of zeros; if that is not a valid input, "
    "set warm-up requests for the version"
)

# Address, and the version's name and number in Triton.
Pair = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A version on an endpoint where it was not served so far."""

    name: Name
    number: str
    model: ModelRoute
    version: VersionRoute
    address: str

    @property
    def pair(self) -> Pair:
        return self.address, self.version.triton_model, self.version.triton_version

    def __str__(self) -> str:
        return f"{self.name}:{self.number} on {self.address}"


class Warmup:
    """Tests newcomers, and remembers the results until their table is applied."""

    def __init__(self, triton: Triton, timeout_s: float) -> None:
        # Sends the requests, over the pools that live requests use.
        self._triton = triton
        # The timeout of each request.
        self._timeout_s = timeout_s
        # When newcomers of a table that is not applied yet answered; monotonic.
        self._answered: dict[Pair, float] = {}

    async def run(
        self, table: RoutingTable, changed: tuple[Name, ...], applied: RoutingTable | None
    ) -> list[str]:
        """Test all newcomers among the `changed` models; return why `table` must not be applied."""
        since = monotonic() - FRESH_S
        self._answered = {pair: at for pair, at in self._answered.items() if at > since}
        reasons: list[str] = []
        waiting = _newcomers(table, changed, applied)
        try:
            async with asyncio.timeout(TURN_S):
                await asyncio.gather(*(self._work(waiting, reasons) for _ in range(AT_ONCE)))
        except TimeoutError:
            reasons.append(f"the warm-up takes longer than {TURN_S:.0f} s and continues")
        if not reasons:
            self._answered = {}
            return []
        # Pools of endpoints that only the refused table has would stay unused.
        self._triton.keep_only(_addresses(applied))
        return sorted(reasons)[:REASONS_MAX]

    async def _work(self, waiting: Iterator[Newcomer | None], reasons: list[str]) -> None:
        for newcomer in waiting:
            if len(reasons) >= REASONS_MAX:
                return
            if newcomer is None:
                await asyncio.sleep(0)
            elif newcomer.pair not in self._answered:
                reason = await self._test(newcomer)
                if reason is None:
                    self._answered[newcomer.pair] = monotonic()
                else:
                    reasons.append(reason)

    async def _test(self, newcomer: Newcomer) -> str | None:
        try:
            self._triton.warm(newcomer.address)
            if newcomer.version.warmup:
                for request in _explicit(newcomer):
                    reply = await self._send(newcomer, request)
                    _check(newcomer, request, reply)
            else:
                await self._send_zeros(newcomer)
        except TritonError as error:
            return f"{newcomer}: {error.message}"
        except Refusal as refusal:
            return f"{newcomer}: the warm-up requests do not fit the signature: {refusal.message}"
        except ValueError as error:
            return f"endpoint {newcomer.address!r}: {error}"
        return None

    async def _send_zeros(self, newcomer: Newcomer) -> None:
        """Send zeros. A version that refuses them is alive: they may not be a valid input."""
        request = _zeros(newcomer.model)
        reply = await self._send(newcomer, request)
        if reply.status != 200 and reply.error().fault is Fault.FAILED:
            raise TritonError(Fault.FAILED, f"{reply.error().message} ({_HINT})")
        if reply.status == 200 or reply.error().fault is not Fault.REFUSED:
            _check(newcomer, request, reply)
            return
        path = "/v2/models/{}/versions/{}/ready".format(*newcomer.pair[1:])
        ready = await self._triton.get(newcomer.address, path, self._timeout_s)
        if ready.status != 200:
            raise TritonError(Fault.DEAD, f"not ready: {reply.error().message}")

    async def _send(self, newcomer: Newcomer, request: InferRequest) -> Reply:
        data = _encode(newcomer, request)
        return await self._triton.send_to(newcomer.address, data, self._timeout_s)


def _newcomers(
    table: RoutingTable, changed: tuple[Name, ...], applied: RoutingTable | None
) -> Iterator[Newcomer | None]:
    """Yield the newcomers, and None when the loop should get a turn."""
    for count, name in enumerate(changed, start=1):
        if count % _SLICE == 0:
            yield None
        known = _pairs(applied, name) if applied is not None else {}
        model = table.models.get(name)
        for number, version in model.versions.items() if model is not None else ():
            assert model is not None
            for address in table.clusters[version.cluster].endpoints:
                pair = (address, version.triton_model, version.triton_version)
                # A number that a restored registry assigned again is another version.
                if known.get(pair, -1) not in (version.created_at_ms, 0):
                    yield Newcomer(name, number, model, version, address)


def _pairs(table: RoutingTable, name: Name) -> dict[Pair, int]:
    """Return the served pairs with the registration time of the version; 0 if unknown."""
    model = table.models.get(name)
    if model is None:
        return {}
    return {
        (address, version.triton_model, version.triton_version): version.created_at_ms
        for version in model.versions.values()
        for address in table.clusters[version.cluster].endpoints
    }


def _addresses(table: RoutingTable | None) -> set[str]:
    clusters = table.clusters.values() if table is not None else ()
    return {address for cluster in clusters for address in cluster.endpoints}


# --- requests ----------------------------------------------------------------------------------


def _explicit(newcomer: Newcomer) -> list[InferRequest]:
    """Return the warm-up requests of the version. Raises Refusal, TritonError."""
    model = newcomer.model
    try:
        requests = orjson.loads(newcomer.version.warmup)
    except orjson.JSONDecodeError as error:
        raise TritonError(
            Fault.REFUSED, f"the warm-up requests are not valid JSON: {error}"
        ) from None
    if type(requests) is not list or not requests:
        raise TritonError(Fault.REFUSED, "the warm-up requests must be a non-empty list")
    rows_max = model.batching.max_batch_size if model.batched else 1
    codec = Codec(model.signature, model.unit_key, batched=model.batched, rows_max=rows_max)
    return [codec.read_infer(orjson.dumps({"inputs": inputs})) for inputs in requests]


def _zeros(model: ModelRoute) -> InferRequest:
    """Return one row of zeros; free dimensions are 1, strings are empty."""
    tensors = []
    inner = []
    for tensor in model.signature.inputs:
        shape = [max(1, size) for size in (tensor.shape[1:] if model.batched else tensor.shape)]
        # An empty string is only its length prefix.
        tensors.append(bytes(prod(shape) * _zero_size(tensor)))
        inner.append(tuple(shape))
    return InferRequest(1, tensors, None, tuple(inner))


def _zero_size(tensor: Tensor) -> int:
    return {"BYTES": 4, "BF16": 2}.get(tensor.datatype) or DATATYPES[tensor.datatype].size


def _encode(newcomer: Newcomer, request: InferRequest) -> bytes:
    model = newcomer.model
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": [request.rows, *inner] if model.batched else list(inner),
            "parameters": {"binary_data_size": len(data)},
        }
        for tensor, inner, data in zip(
            model.signature.inputs, request.inner, request.tensors, strict=True
        )
    ]
    header = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    body = header + b"".join(request.tensors)
    return (
        b"POST /v2/models/%b/versions/%b/infer HTTP/1.1\r\nhost: triton\r\n"
        b"inference-header-content-length: %d\r\ncontent-length: %d\r\n\r\n%b"
        % (
            newcomer.version.triton_model.encode(),
            newcomer.version.triton_version.encode(),
            len(header),
            len(body),
            body,
        )
    )


def _check(newcomer: Newcomer, request: InferRequest, reply: Reply) -> None:
    """Raise TritonError unless the reply has everything that a live request needs."""
    model = newcomer.model
    ReplyReader(model.signature, batched=model.batched).read(reply, request.rows)
