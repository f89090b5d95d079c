"""The inference protocol over gRPC, on its own port, for `tritonclient.grpc` and other clients.

A call is handled like a request over HTTP: it is a `Caller` whose headers are its metadata and
whose answer is a message. Response headers of HTTP are sent as trailing metadata. This module is
imported only if gRPC is enabled: grpc and its messages take time and memory to load.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as messages

from dataplane import protocol_metadata
from dataplane.admission import TIMEOUT_HEADER, Tenancy
from dataplane.caller import Abandonable
from dataplane.config import Limits
from dataplane.emergency_pin import Operator
from dataplane.errors import Refusal, bad_request
from dataplane.grpc_codec import grpc_form, parse_request, read_message, survey
from dataplane.predict import Predictor
from dataplane.request_bounds import CHEAP_BYTES_MAX, SMALL_BYTES_MAX
from dataplane.unit_clusters import cluster_of_peer

log = logging.getLogger("interlock.dataplane")

SERVICE = "/inference.GRPCInferenceService/"
_TIMEOUT_MS_MAX = 3_600_000
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

Metadata = tuple[tuple[str, str], ...]
Method = Callable[[Any, Any], Awaitable[bytes]]


class GrpcCaller:
    """One call and its result: a serialised message or a refusal, and metadata."""

    __slots__ = ("answer", "headers", "job", "peer", "tenancy")

    def __init__(
        self,
        answer: asyncio.Future[tuple[bytes | Refusal, bytes]],
        headers: dict[bytes, bytes],
        peer: str = "",
    ) -> None:
        # Resolved with the result; cancelled when the client hangs up.
        self.answer = answer
        # The metadata of the call, and its deadline as an HTTP header.
        self.headers = headers
        # The tenant whose concurrency the call counts in until it is answered; see `caller.Caller`.
        self.tenancy: Tenancy | None = None
        # Notified if the client hangs up before the answer.
        self.job: Abandonable | None = None
        # The client's address in the format of grpc, such as `ipv4:127.0.0.1:50000`.
        self.peer = peer

    @property
    def client_cluster(self) -> int:
        """The cluster of the client's address, the same as over HTTP."""
        return cluster_of_peer(self.peer)

    def respond(self, status: int, body: bytes, headers: bytes = b"") -> None:
        """Answer with a serialised message."""
        self._end(body, headers)

    def refuse(self, refusal: Refusal, headers: bytes = b"") -> None:
        """Answer with an error."""
        self._end(refusal, headers)

    def _end(self, result: bytes | Refusal, headers: bytes) -> None:
        self.job = None
        tenancy, self.tenancy = self.tenancy, None
        if tenancy is not None:
            tenancy.leave()
        if not self.answer.done():
            self.answer.set_result((result, headers))


class GrpcService:
    """The gRPC server and its methods."""

    def __init__(
        self,
        predictor: Predictor,
        not_ready: Callable[[], str | None],
        operator: Operator,
        limits: Limits,
        calls_max: int,
    ) -> None:
        # Answers predictions.
        self._predictor = predictor
        # The applied table.
        self._serving = predictor.serving
        # Returns why the instance is not ready, or None.
        self._not_ready = not_ready
        # Checks the operator's token, for configurations and statistics.
        self._operator = operator
        # grpc itself refuses calls beyond `calls_max` and messages over the size limit.
        self._server = grpc.aio.server(
            options=_options(limits), maximum_concurrent_rpcs=calls_max, handlers=[_Handlers(self)]
        )

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port. Raises RuntimeError if that is not possible."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        bound = self._server.add_insecure_port(address)
        await self._server.start()
        return int(bound)

    async def stop(self, grace_s: float) -> None:
        """Accept no further calls, and wait up to `grace_s` for those in progress."""
        await self._server.stop(grace_s)

    # --- the methods: from the bytes of a request to those of its response ----------------------

    async def infer(self, data: bytes, context: Any) -> bytes:
        answer = asyncio.get_running_loop().create_future()
        caller = GrpcCaller(answer, _headers(context), context.peer())
        try:
            self._predict(caller, data)
        except Refusal as refusal:
            caller.refuse(refusal, self._predictor.generation_line())
        except Exception:
            # The tenant's concurrency slot must be released.
            caller.refuse(_internal_error())
            raise
        try:
            result, lines = await caller.answer
        except asyncio.CancelledError:
            if caller.job is not None:
                caller.job.abandoned()
            raise
        if isinstance(result, Refusal):
            await _abort(context, result, lines)
            return b""
        context.set_trailing_metadata(_metadata(lines))
        return result

    def _predict(self, caller: GrpcCaller, data: bytes) -> None:
        size = len(data)
        if size > SMALL_BYTES_MAX:
            name, version, plain_bytes = survey(data)
            if self._has_texts(name):
                # Each element has a length prefix, which must be read one by one.
                plain_bytes = size
            if plain_bytes > CHEAP_BYTES_MAX:
                self._predictor.message(caller, data, name, version, grpc_form)
                return
        message = parse_request(data)
        name, version = message.model_name, message.model_version or None
        self._predictor.predict(caller, message, name, version, read_message, grpc_form, size)

    def _has_texts(self, name: str) -> bool:
        table = self._serving.table
        route = table.models.get(name) if table is not None else None
        return route is not None and any(x.datatype == "BYTES" for x in route.signature.inputs)

    async def live(self, data: bytes, context: Any) -> bytes:
        return bytes(messages.ServerLiveResponse(live=True).SerializeToString())

    async def ready(self, data: bytes, context: Any) -> bytes:
        ready = self._not_ready() is None
        return bytes(messages.ServerReadyResponse(ready=ready).SerializeToString())

    async def server_metadata(self, data: bytes, context: Any) -> bytes:
        answer = messages.ServerMetadataResponse(**protocol_metadata.server_metadata())
        return bytes(answer.SerializeToString())

    async def model_ready(self, data: bytes, context: Any) -> bytes:
        message = _parse(messages.ModelReadyRequest, data)
        ready = True
        try:
            protocol_metadata.check_ready(
                self._serving.model(message.name), message.version or None
            )
        except Refusal:
            ready = False
        return bytes(messages.ModelReadyResponse(ready=ready).SerializeToString())

    async def model_metadata(self, data: bytes, context: Any) -> bytes:
        message = _parse(messages.ModelMetadataRequest, data)
        model = self._serving.model(message.name)
        document = protocol_metadata.model_metadata(model, message.version or None)
        return bytes(messages.ModelMetadataResponse(**document).SerializeToString())

    async def model_config(self, data: bytes, context: Any) -> bytes:
        self._operator.check(_headers(context))
        message = _parse(messages.ModelConfigRequest, data)
        model = self._serving.model(message.name)
        document = protocol_metadata.model_config(model, message.version or None)
        return bytes(messages.ModelConfigResponse(config=document).SerializeToString())

    async def model_statistics(self, data: bytes, context: Any) -> bytes:
        self._operator.check(_headers(context))
        message = _parse(messages.ModelStatisticsRequest, data)
        name, version = message.name or None, message.version or None
        document = protocol_metadata.model_statistics(self._serving, name, version)
        return bytes(messages.ModelStatisticsResponse(**document).SerializeToString())

    async def unsupported(self, data: bytes, context: Any) -> bytes:
        raise Refusal(
            501,
            "not_supported",
            "this method is not supported: the control plane loads and unloads models; streams, "
            "shared memory, tracing and logging need a direct connection to one Triton server",
        )


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Maps calls to methods."""

    def __init__(self, service: GrpcService) -> None:
        # Handlers by the path of the call.
        self._methods = {
            f"{SERVICE}{name}": grpc.unary_unary_rpc_method_handler(_guarded(method))
            for name, method in (
                ("ModelInfer", service.infer),
                ("ServerLive", service.live),
                ("ServerReady", service.ready),
                ("ServerMetadata", service.server_metadata),
                ("ModelReady", service.model_ready),
                ("ModelMetadata", service.model_metadata),
                ("ModelConfig", service.model_config),
                ("ModelStatistics", service.model_statistics),
            )
        }
        # The handler of the other methods of the service, which only a model server has.
        self._other = grpc.unary_unary_rpc_method_handler(_guarded(service.unsupported))

    def service(self, handler_call_details: Any) -> Any:
        path = handler_call_details.method
        handler = self._methods.get(path)
        return self._other if handler is None and path.startswith(SERVICE) else handler


def _guarded(method: Method) -> Method:
    async def call(data: bytes, context: Any) -> bytes:
        try:
            return await method(data, context)
        except Refusal as refusal:
            await _abort(context, refusal, b"")
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("a call failed")
            await _abort(context, _internal_error(), b"")
        return b""

    return call


def _internal_error() -> Refusal:
    return Refusal(500, "internal_error", "the call could not be handled")


async def _abort(context: Any, refusal: Refusal, lines: bytes) -> None:
    code = _CODES.get(refusal.status, grpc.StatusCode.UNKNOWN)
    trailing = (*_metadata(lines + refusal.headers()), ("x-interlock-code", refusal.code))
    await context.abort(code, refusal.message, trailing)


def _headers(context: Any) -> dict[bytes, bytes]:
    """Return the metadata of a call as the headers of a request, including the deadline."""
    headers = {
        name.encode(): value.encode() if type(value) is str else value
        for name, value in context.invocation_metadata()
    }
    remaining_s = context.time_remaining()
    if remaining_s is not None:
        headers[TIMEOUT_HEADER] = b"%d" % max(1, min(int(remaining_s * 1000), _TIMEOUT_MS_MAX))
    return headers


def _metadata(lines: bytes) -> Metadata:
    """Convert header lines to metadata."""
    pairs = (line.split(": ", 1) for line in lines.decode("ascii").split("\r\n") if line)
    return tuple((name, value) for name, value in pairs)


def _parse(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        name = kind.DESCRIPTOR.name
        raise bad_request("malformed_request", f"the message is not a valid {name}") from None


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.body_bytes_max),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.head_bytes_max),
        ("grpc.max_connection_idle_ms", limits.idle_timeout_s * 1000),
        # Worker processes share the port.
        ("grpc.so_reuseport", 1),
    ]
