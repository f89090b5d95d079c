"""Reads prediction requests, and starts the predictions, which answer their callers later.

Small requests are read at once. For others the elements are counted first; those that may cost the
event loop more than a millisecond are read by `dataplane.reading`, and continue when their tensors
are there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

from dataplane.admission import REQUEST_BYTES, Tenancy, read_timeout_s
from dataplane.caller import Caller
from dataplane.codec import (
    Codec,
    InferRequest,
    Spec,
    check_unit,
    load_object,
    read_header_length,
)
from dataplane.errors import Refusal, bad_request
from dataplane.exchange import Exchange
from dataplane.prediction import Prediction
from dataplane.reading import Job, Reading
from dataplane.reading.queue import Answer
from dataplane.request_bounds import (
    CHEAP_BYTES_MAX,
    SMALL_BYTES_MAX,
    check_text,
    is_cheap,
    too_large,
)
from dataplane.responses import Form, infer_form, plain_form
from dataplane.serving import LiveModel, Serving
from dataplane.telemetry import Telemetry

T = TypeVar("T")

log = logging.getLogger("interlock.dataplane")

# Seconds for which a plain request may wait to be read: its body names the model.
PLAIN_WAIT_S = 10.0


@dataclass(slots=True)
class _Large:
    """A request that is read elsewhere, and its state meanwhile."""

    caller: Caller
    form: Form
    arrived_at: float
    tenancy: Tenancy
    size: int
    version: str | None = None
    # For a plain request set when its body was read so far.
    model: LiveModel | None = None


class Predictor:
    """Handles infer and plain predict requests; one per process."""

    def __init__(
        self,
        serving: Serving,
        telemetry: Telemetry,
        reading: Reading | None = None,
    ) -> None:
        # The applied table at run time.
        self.serving = serving
        # Takes exposures.
        self.telemetry = telemetry
        # Reads large requests.
        self.reading = reading or Reading()

    def infer(self, exchange: Exchange, name: str, version: str | None) -> None:
        """Answer an infer request of the Open Inference Protocol over HTTP. Raises Refusal."""
        if exchange.coding is None and len(exchange.body) <= SMALL_BYTES_MAX:
            self.predict(exchange, exchange, name, version, _read_infer, infer_form)
        else:
            self._infer_large(exchange, name, version)

    def predict(
        self,
        caller: Caller,
        raw: T,
        name: str,
        version: str | None,
        read: Callable[[Codec, T], InferRequest],
        form: Form,
        size: int = 0,
    ) -> None:
        """Answer `caller`, whose request `raw` is parsed by `read`. Raises Refusal."""
        arrived_at = monotonic()
        tenancy = self.serving.admission.admit(caller, size)
        model = self._opened(name, tenancy)
        cache = model.cache
        try:
            if cache is not None and isinstance(raw, Exchange):
                request = cache.read(_read_infer, model.codec, raw)
            else:
                request = read(model.codec, raw)
            headers = caller.headers
            unit = request.unit or self._unit(headers, model)
            timeout_s = read_timeout_s(headers, model.timeout_s)
        except Refusal:
            self._count_invalid(model, version)
            raise
        Prediction(
            self.serving, self.telemetry, caller, form, model, request, unit,
            arrived_at, timeout_s, tenancy,
        ).start(version)  # fmt: skip

    def plain(self, exchange: Exchange) -> None:
        """Answer `POST /predict`. Raises Refusal."""
        arrived_at = monotonic()
        body = exchange.body
        tenancy = self.serving.admission.admit(exchange, len(body))
        large = _Large(exchange, plain_form, arrived_at, tenancy, len(body))
        if exchange.coding is not None or not is_cheap(body):
            self._plain_large(large, exchange)
            return
        document = load_object(body)
        model = large.model = self._named(document.get("model"), tenancy)
        version = document.get("version")
        try:
            if "data" not in document:
                raise bad_request("malformed_request", "'data' is missing")
            request = model.codec.read_rows(document["data"])
        except Refusal:
            self._count_invalid(model, version if type(version) is str else None)
            raise
        user, request_id = document.get("user_id"), document.get("request_id")
        self._start_plain(large, request, version, user, request_id)

    # --- large requests ------------------------------------------------------------------------

    def _infer_large(self, exchange: Exchange, name: str, version: str | None) -> None:
        arrived_at = monotonic()
        size = len(exchange.body)
        tenancy = self.serving.admission.admit(exchange, size)
        model = self._opened(name, tenancy)
        large = _Large(exchange, infer_form, arrived_at, tenancy, size, version, model)
        try:
            at_once = _is_read_at_once(exchange, model.codec)
            request = self._read_here(exchange, model) if at_once else None
        except Refusal:
            self._count_invalid(model, version)
            raise
        if request is not None:
            self._start(large, request)
            return
        job = Job(
            kind="infer",
            body=exchange.body,
            coding=exchange.coding or b"",
            bytes_max=self.reading.bytes_max,
            header_length=exchange.headers.get(b"inference-header-content-length"),
            spec=model.codec.spec,
        )
        exchange.body = b""
        self._read_elsewhere(large, job, arrived_at + model.timeout_s)

    def _read_here(self, exchange: Exchange, model: LiveModel) -> InferRequest:
        cache = model.cache
        if cache is None or len(exchange.body) > CHEAP_BYTES_MAX:
            return _read_infer(model.codec, exchange)
        return cache.read(_read_infer, model.codec, exchange)

    def message(
        self, caller: Caller, data: bytes, name: str, version: str | None, form: Form
    ) -> None:
        """Answer a gRPC call whose message is too large to be parsed here. Raises Refusal."""
        arrived_at = monotonic()
        tenancy = self.serving.admission.admit(caller, len(data))
        model = self._opened(name, tenancy)
        large = _Large(caller, form, arrived_at, tenancy, len(data), version, model)
        bytes_max = self.reading.bytes_max
        job = Job(kind="grpc", body=data, bytes_max=bytes_max, spec=model.codec.spec)
        self._read_elsewhere(large, job, arrived_at + model.timeout_s)

    def _plain_large(self, large: _Large, exchange: Exchange) -> None:
        def spec(name: Any) -> Spec:
            large.model = self._named(name, large.tenancy)
            return large.model.codec.spec

        job = Job(
            kind="plain",
            body=exchange.body,
            coding=exchange.coding or b"",
            bytes_max=self.reading.bytes_max,
        )
        exchange.body = b""
        self._read_elsewhere(large, job, large.arrived_at + PLAIN_WAIT_S, spec)

    def _read_elsewhere(
        self, large: _Large, job: Job, until: float, spec: Callable[[Any], Spec] | None = None
    ) -> None:
        def done(answer: Answer) -> None:
            # No caller catches exceptions here.
            try:
                self._go_on(large, answer)
            except Refusal as refusal:
                large.caller.refuse(refusal, self.generation_line())
            except Exception:
                log.exception("a large request failed")
                failure = Refusal(500, "internal_error", "the request could not be handled")
                large.caller.refuse(failure, b"")

        self.reading.read(large.caller, job, until, done, spec)

    def _go_on(self, large: _Large, answer: Answer) -> None:
        large.caller.job = None
        model = large.model
        if isinstance(answer, Refusal):
            if model is not None and answer.status in (400, 413):
                self._count_invalid(model, large.version)
            raise answer
        large.tenancy.charge(max(0, answer.length - large.size) / REQUEST_BYTES)
        assert model is not None
        assert answer.tensors is not None
        request = answer.tensors.request(model.codec)
        if large.form is plain_form:
            self._start_plain(large, request, answer.version, answer.user, answer.request_id)
        else:
            self._start(large, request)

    # --- after reading -------------------------------------------------------------------------

    def _start_plain(
        self, large: _Large, request: InferRequest, version: Any, user: Any, request_id: Any
    ) -> None:
        if version is not None and type(version) is not str:
            raise bad_request("malformed_request", "'version' must be a string")
        large.version = version
        request.id = _request_id(large.caller.headers, request_id)
        self._start(large, request, user)

    def _start(self, large: _Large, request: InferRequest, user: Any = None) -> None:
        model = large.model
        assert model is not None
        headers = large.caller.headers
        try:
            body_unit = request.unit if user is None else check_unit(user)
            unit = self._unit(headers, model) if body_unit is None and user is None else body_unit
            timeout_s = read_timeout_s(headers, model.timeout_s)
        except Refusal:
            self._count_invalid(model, large.version)
            raise
        Prediction(
            self.serving, self.telemetry, large.caller, large.form, model, request, unit,
            large.arrived_at, timeout_s, large.tenancy,
        ).start(large.version)  # fmt: skip

    def generation_line(self) -> bytes:
        """Return the header of a request that is refused before a version is decided."""
        return b"x-interlock-generation: %d\r\n" % self.serving.generation

    def _named(self, name: Any, tenancy: Tenancy) -> LiveModel:
        if type(name) is not str:
            raise bad_request("malformed_request", "'model' must be the name of a model")
        return self._opened(name, tenancy)

    def _opened(self, name: str, tenancy: Tenancy) -> LiveModel:
        if tenancy.models is not None:
            tenancy.check_model(name)
        return self.serving.model(name)

    def _unit(self, headers: dict[bytes, bytes], model: LiveModel) -> str | None:
        value = headers.get(model.unit_header)
        if value is None:
            return None
        try:
            return check_unit(value.decode())
        except UnicodeDecodeError:
            return check_unit(value.decode("latin-1"))

    def _count_invalid(self, model: LiveModel, version: str | None) -> None:
        decided = version if version is not None else model.route.stable
        if decided in model.route.versions:
            decision = model.router.explicit(decided)
            self.serving.lane(model, decision).runtime.stats.count("invalid")


def _read_infer(codec: Codec, exchange: Exchange) -> InferRequest:
    length = exchange.headers.get(b"inference-header-content-length")
    body = exchange.body
    return codec.read_infer(body, None if length is None else read_header_length(length, body))


def _is_read_at_once(exchange: Exchange, codec: Codec) -> bool:
    """Return whether reading is cheap: a cheap JSON part, and no strings in the binary part."""
    if exchange.coding is not None:
        return False
    body = exchange.body
    value = exchange.headers.get(b"inference-header-content-length")
    length = len(body) if value is None else read_header_length(value, body)
    bytes_max = codec.bounds.bytes_max
    if bytes_max is not None and length > bytes_max:
        raise too_large(bytes_max)
    if length > CHEAP_BYTES_MAX or (codec.bounds.texts and len(body) > CHEAP_BYTES_MAX):
        return False
    text = body[:length]
    check_text(text, codec.bounds)
    return is_cheap(text)


def _request_id(headers: dict[bytes, bytes], body_id: object) -> str | None:
    """Return the client's id of its request; without one the answer gets a generated id."""
    if type(body_id) is str:
        return body_id
    header = headers.get(b"x-request-id")
    return header.decode() if header is not None and header.isascii() else None
