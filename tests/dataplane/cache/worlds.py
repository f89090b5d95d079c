"""A data plane with a cache on a fake Triton, and clients for it."""

from __future__ import annotations

import asyncio

from contract.routing import Cache as Settings
from dataplane.cache import Cache
from dataplane.errors import Refusal
from dataplane.predict import Predictor
from dataplane.serving import Serving
from dataplane.telemetry import Telemetry
from tests.dataplane.wire import Answer, Wire, request
from tests.dataplane.worlds import (
    HeldTriton,
    body,
    knowing,
    model,
    stopped_clock,
    sums_reply,
    table,
)

ROW = [1.0, 2.0, 3.0, 4.0]
INFER = "/v2/models/sums/infer"
ON = Settings(ttl_s=60)


class Plane:
    """Serves one model with a cache; `ask` sends one request and returns its answer."""

    def __init__(self, answer=sums_reply, shared=None, **changes):
        loop = asyncio.get_running_loop()
        self.triton = HeldTriton(answer)
        self.telemetry = Telemetry(stopped_clock())
        self.serving = knowing(Serving(self.triton, self.telemetry, loop, 4))
        self.cache = self.serving.cache = Cache(loop, shared, 1_000, 10_000_000)
        self.apply(1, **changes)
        self.predictor = Predictor(self.serving, self.telemetry)

    def apply(self, generation, **changes):
        self.serving.apply(table(model(**{"cache": ON} | changes), generation))

    def answer(self, exchange):
        """Handle the paths of predictions like the application."""
        parts = exchange.target.decode().split("/")
        try:
            if parts[1] == "predict":
                self.predictor.plain(exchange)
            else:
                self.predictor.infer(exchange, parts[3], parts[5] if len(parts) == 7 else None)
        except Refusal as refusal:
            exchange.refuse(refusal)

    def send(self, payload=None, headers="", target=INFER):
        """Send a request; its answer appears on the wire."""
        wire = Wire(answer=self.answer)
        wire.feed(request(target, body(ROW) if payload is None else payload, headers))
        return wire

    async def ask(self, payload=None, headers="", target=INFER, turns=15):
        wire = self.send(payload, headers, target)
        for _ in range(turns):
            await asyncio.sleep(0)
        return Answer(wire.transport.written)

    async def state(self, *args, **named):
        return (await self.ask(*args, **named)).state

    @property
    def calls(self):
        return len(self.triton.calls)

    def windows(self):
        windows, self.exposures = self.telemetry.drain(self.serving.generation)
        return {window.variant: window for window in windows}
