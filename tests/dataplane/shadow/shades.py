"""A data plane on real sockets: stable and canary on one upstream, the shadow on another."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from contract.routing import Cluster, RoutingTable, Shadow, VersionRoute
from dataplane.cache import Cache
from dataplane.errors import Refusal
from dataplane.exchange import Exchange
from dataplane.predict import Predictor
from dataplane.serving import Serving
from dataplane.shadow.mirror import Shadows
from dataplane.telemetry import Telemetry
from dataplane.triton import Triton
from tests.dataplane.wire import Answer, Wire, request
from tests.dataplane.worlds import Upstream, body, knowing, model, stopped_clock, until

ROW = [1.0, 2.0, 3.0, 4.0]
SHADOW = Shadow(id="sh1", salt="sh", version="3", share_bp=10_000)


class Negating(Upstream):
    """Answers with the negated sums, and the label 0."""

    def _answer(self, request: bytes) -> bytes:
        answer = super()._answer(request)
        if b"/infer" not in request or b"200 X" not in answer:
            return answer
        head, _, payload = answer.partition(b"\r\n\r\n")
        length = int(head.rsplit(b": ", 1)[1])
        rows = (len(payload) - length) // 12
        sums = struct.unpack(f"<{rows}f", payload[length + 8 * rows :])
        data = struct.pack(f"<{rows}q{rows}f", *[0] * rows, *[-value for value in sums])
        return head + b"\r\n\r\n" + payload[:length] + data


class Shades:
    """Version 1 is stable, 2 may be a canary, 3 the shadow, alone on its cluster."""

    def __init__(self, live: Upstream, shadow: Upstream, **settings: int) -> None:
        loop = asyncio.get_running_loop()
        self.live, self.shadow = live, shadow
        self.triton = Triton(loop)
        self.shadows = Shadows(Triton(loop, 2), loop, time.time, **settings)
        self.telemetry = Telemetry(stopped_clock())
        self.serving = knowing(Serving(self.triton, self.telemetry, loop, 4, shadows=self.shadows))
        self.predictor = Predictor(self.serving, self.telemetry)

    def apply(self, generation: int = 1, **changes: Any) -> None:
        versions = {
            number: VersionRoute(
                cluster="shade" if number == "3" else "main",
                triton_model=f"sums.{number}",
                triton_version=number,
            )
            for number in "123"
        }
        route = model(**{"versions": versions, "shadow": SHADOW} | changes)
        self.serving.apply(
            RoutingTable(
                generation=generation,
                models={"sums": route},
                clusters={
                    "main": Cluster(endpoints=(self.live.address,)),
                    "shade": Cluster(endpoints=(self.shadow.address,)),
                },
            )
        )

    def with_cache(self) -> None:
        self.serving.cache = Cache(asyncio.get_running_loop(), None, 100, 100_000)

    async def ask(
        self, *rows: list[float], unit: str | None = None, version: str | None = None
    ) -> Answer:
        def answer(exchange: Exchange) -> None:
            try:
                self.predictor.infer(exchange, "sums", version)
            except Refusal as refusal:
                exchange.refuse(refusal)

        wire = Wire(answer=answer)
        headers = f"x-unit-id: {unit}\r\n" if unit is not None else ""
        wire.feed(request("/", body(*(rows or (ROW,))), headers))
        await until(lambda: wire.transport.written != b"")
        return Answer(wire.transport.written)

    async def settled(self) -> None:
        """Wait until no copy is left."""
        await until(lambda: self.shadows.copies == 0)
        assert self.shadows.held_bytes == 0

    def results(self) -> dict[str, int]:
        return {
            result: count
            for _, _, runtime in self.shadows.runtimes()
            for result, count in runtime.stats.results.items()
        }

    def breaker_of_stable(self) -> Any:
        live = self.serving.model("sums")
        return self.serving.lane(live, live.router.stable).runtime.breaker

    def close(self) -> None:
        self.triton.close()
        self.shadows.close()


@asynccontextmanager
async def shades(
    upstream: Upstream | None = None, settings: dict[str, int] | None = None, **changes: Any
) -> AsyncIterator[Shades]:
    async with Upstream() as live, upstream or Upstream() as shade:
        plane = Shades(live, shade, **settings or {})
        plane.apply(**changes)
        yield plane
        plane.close()
