"""The operator's endpoints, and the emergency pin, which forces models to stable on one instance.

A pin needs only the instance itself: no control plane, no Redis, no database. While a model is
pinned its split has no effect, and every request without a version goes to stable. The pins are in
a file in the state directory, so that they outlive the process; they take effect even if the disk
cannot store them.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import orjson

from dataplane.codec import load_object
from dataplane.errors import Refusal, bad_request
from dataplane.exchange import Exchange
from dataplane.pin_file import PIN_ALL, Outcome, PinFile, changed
from dataplane.request_bounds import SMALL_BYTES_MAX, too_large
from dataplane.serving import Serving

log = logging.getLogger("interlock.dataplane")


class Pins:
    """The pins of this process."""

    def __init__(self, file: PinFile, apply: Callable[[frozenset[str]], None]) -> None:
        # The file that holds the pins.
        self._file = file
        # Applies the pins to the routing.
        self._apply = apply
        # The current pins.
        self.names = file.load()
        # Carries a change to every worker; without siblings, to this one only.
        self.change: Callable[[str, bool], Awaitable[Outcome]] = self.change_alone
        apply(self.names)

    def take(self, names: frozenset[str]) -> None:
        """Put `names` into effect, from the next request on."""
        if names != self.names:
            log.warning("pins.changed: %s", ", ".join(sorted(names)) or "none")
        self.names = names
        self._apply(names)

    async def change_alone(self, model: str, pin: bool) -> Outcome:
        """Pin or unpin in this process and on disk only."""
        names = changed(self.names, model, pin=pin)
        self.take(names)
        stored = await asyncio.to_thread(self._file.store, names)
        return Outcome(sorted(names), stored)


class Operator:
    """The endpoints that require the operator's token: metrics, statistics and `/operator/…`."""

    def __init__(self, serving: Serving, pins: Pins, token: str) -> None:
        # The applied table.
        self._serving = serving
        # Holds the pins.
        self._pins = pins
        # The operator's token; empty disables these endpoints.
        self._token = token.encode()
        # Changes in progress, referenced so that they are not garbage collected.
        self._tasks: set[asyncio.Task[None]] = set()

    def only(self, handler: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
        """Return a handler that requires the operator's token."""

        def checked(exchange: Exchange) -> None:
            self.check(exchange.headers)
            handler(exchange)

        return checked

    def pin(self, exchange: Exchange) -> None:
        """Answer `POST /operator/pin`, and `GET` with the current pins. Raises Refusal."""
        self.check(exchange.headers)
        if exchange.method == b"GET":
            exchange.respond(200, orjson.dumps({"pinned": sorted(self._pins.names)}))
            return
        if exchange.method != b"POST":
            raise Refusal(
                405, "method_not_allowed", "method not allowed; expected POST or GET", allow=b"POST"
            )
        model = _model(exchange)
        table = self._serving.table
        if model != PIN_ALL and (table is None or model not in table.models):
            raise Refusal(404, "model_not_found", f"unknown model {model!r}; '*' pins all models")
        self._start(exchange, model, pin=True)

    def unpin(self, exchange: Exchange) -> None:
        """Answer `POST /operator/unpin`. Raises Refusal."""
        self.check(exchange.headers)
        model = _model(exchange)
        if model != PIN_ALL and PIN_ALL in self._pins.names:
            raise bad_request("pinned_as_all", "all models are pinned with '*': unpin '*'")
        self._start(exchange, model, pin=False)

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise Refusal unless `headers` carry the operator's token (401; 403 if none is set)."""
        if not self._token:
            raise Refusal(
                403, "operator_disabled", "INTERLOCK_OPERATOR_TOKEN is not set on this instance"
            )
        authorization = headers.get(b"authorization", b"")
        if not hmac.compare_digest(authorization, b"Bearer " + self._token):
            raise Refusal(401, "operator_token_wrong", "the operator's token is required")

    def _start(self, exchange: Exchange, model: str, *, pin: bool) -> None:
        task = asyncio.get_running_loop().create_task(self._change(exchange, model, pin))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _change(self, exchange: Exchange, model: str, pin: bool) -> None:
        try:
            outcome = await self._pins.change(model, pin)
        except Exception:
            log.exception(
                "a pin did not reach the other workers; it has effect in this process only"
            )
            outcome = await self._pins.change_alone(model, pin)
            outcome = msgspec.structs.replace(outcome, workers=0)
        exchange.respond(200, msgspec.json.encode(outcome))


def _model(exchange: Exchange) -> str:
    if exchange.coding is not None or len(exchange.body) > SMALL_BYTES_MAX:
        raise too_large(SMALL_BYTES_MAX)
    document: dict[str, Any] = load_object(exchange.body)
    model = document.get("model")
    if type(model) is not str or not model:
        raise bad_request("malformed_request", "'model' must be the name of a model, or '*'")
    return model
