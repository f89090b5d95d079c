"""Reads a request for a prediction, and starts the prediction. Whoever asks is answered later."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from dataplane.admission import read_timeout_s
from dataplane.caller import Caller
from dataplane.codec import Codec, InferRequest, check_unit, load_object
from dataplane.errors import Refusal, bad_request
from dataplane.exchange import Exchange
from dataplane.forms import Form, infer_form, plain_form
from dataplane.prediction import Prediction
from dataplane.serving import LiveModel, Serving
from dataplane.telemetry import Telemetry

T = TypeVar("T")


class Predictor:
    """Takes infer and plain predict requests; one for the whole process."""

    def __init__(
        self,
        serving: Serving,
        telemetry: Telemetry,
    ) -> None:
        # The applied table at run time.
        self.serving = serving
        # Where exposures go.
        self.telemetry = telemetry

    def infer(self, exchange: Exchange, name: str, version: str | None) -> None:
        """Answer an infer request of the Open Inference Protocol over HTTP. Raises Refusal."""
        self.predict(exchange, exchange, name, version, _read_infer, infer_form)

    def predict(
        self,
        caller: Caller,
        asked: T,
        name: str,
        version: str | None,
        read: Callable[[Codec, T], InferRequest],
        form: Form,
    ) -> None:
        """Answer `caller`, whose request `asked` is understood by `read`. Raises Refusal."""
        arrived_at = monotonic()
        tenancy = self.serving.admission.admit(caller)
        model = self.serving.model(name)
        cache = model.cache
        try:
            if cache is not None and isinstance(asked, Exchange):
                request = cache.read(_read_infer, model.codec, asked)
            else:
                request = read(model.codec, asked)
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
        tenancy = self.serving.admission.admit(exchange)
        document = load_object(exchange.body)
        name = document.get("model")
        if type(name) is not str:
            raise bad_request("malformed_request", "'model' must be the name of a model")
        model = self.serving.model(name)
        version = document.get("version")
        if version is not None and type(version) is not str:
            raise bad_request("malformed_request", "'version' must be a string")
        try:
            if "data" not in document:
                raise bad_request("malformed_request", "the request has no 'data'")
            request = model.codec.read_rows(document["data"])
            user = document.get("user_id")
            unit = check_unit(user) if user is not None else self._unit(exchange.headers, model)
            timeout_s = read_timeout_s(exchange.headers, model.timeout_s)
        except Refusal:
            self._count_invalid(model, version)
            raise
        request.id = _request_id(exchange.headers, document.get("request_id"))
        Prediction(
            self.serving, self.telemetry, exchange, plain_form, model, request, unit,
            arrived_at, timeout_s, tenancy,
        ).start(version)  # fmt: skip

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
    headers = exchange.headers
    length = headers.get(b"inference-header-content-length")
    body = exchange.body
    return codec.read_infer(body, None if length is None else _header_length(length, body))


def _header_length(value: bytes, body: bytes) -> int:
    if not value.isdigit() or int(value) > len(body):
        raise bad_request(
            "malformed_request", "Inference-Header-Content-Length is not a length within the body"
        )
    return int(value)


def _request_id(headers: dict[bytes, bytes], given: object) -> str | None:
    """Return the client's own id of its request; without one the answer's is made for it."""
    if type(given) is str:
        return given
    header = headers.get(b"x-request-id")
    return header.decode() if header is not None and header.isascii() else None
