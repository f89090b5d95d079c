"""A slow model server, and clients that send requests without a pause."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from contract.routing import Batching, Breaker
from dataplane.codec import InferRequest
from dataplane.predict import Predictor
from dataplane.serving import Serving
from dataplane.telemetry import Telemetry
from dataplane.triton import Fault, Reply, TritonError
from tests.dataplane.worlds import model, rows_of, stopped_clock, sums_reply, table, until


@dataclass(eq=False)
class Call:
    request: bytes
    rows: int
    cost_s: float
    until: float
    on_done: Callable[[Reply | TritonError], None]
    timer: asyncio.TimerHandle | None = None
    done: bool = False

    def end(self, result: Reply | TritonError) -> None:
        if not self.done:
            self.done = True
            self.timer.cancel()
            self.on_done(result)


class SlowTriton:
    """Computes one batch after the other, in the real time of the loop.

    `cost_s` is the time of a row with this first number, `fixed_s` is added per batch. As in
    Triton's batcher, requests that wait while a batch is computed are computed together, a call
    whose timeout passes while it waits is not computed, and one that is being computed is computed
    to the end.
    """

    def __init__(self, cost_s: Callable[[float], float], fixed_s: float = 0.0) -> None:
        self.cost_s = cost_s
        self.fixed_s = fixed_s
        self.hangs = False
        self.busy = False
        self.waiting: deque[Call] = deque()
        self.sizes: list[int] = []
        self.rows_done = 0

    def post(self, addresses: object, request: bytes, timeout_s: float, on_done: object) -> None:
        loop = asyncio.get_running_loop()
        rows = rows_of(request)[1]
        self.sizes.append(len(rows))
        cost_s = sum(self.cost_s(row[0]) for row in rows)
        call = Call(request, len(rows), cost_s, monotonic() + timeout_s, on_done)
        late = TritonError(Fault.TIMEOUT, "no answer before the deadline")
        call.timer = loop.call_later(timeout_s, call.end, late)
        self.waiting.append(call)
        if not self.busy:
            self._next()

    def _next(self) -> None:
        now = monotonic()
        calls: list[Call] = []
        rows = 0
        while self.waiting and rows + self.waiting[0].rows <= 32 and not self.hangs:
            call = self.waiting.popleft()
            if call.until > now:
                calls.append(call)
                rows += call.rows
        self.busy = bool(calls)
        if calls:
            took_s = self.fixed_s + sum(call.cost_s for call in calls)
            asyncio.get_running_loop().call_later(took_s, self._finish, calls)

    def _finish(self, calls: list[Call]) -> None:
        self.busy = False
        for call in calls:
            self.rows_done += call.rows
            call.end(sums_reply(call.request))
        if not self.busy:
            self._next()

    def keep_only(self, addresses: object) -> None:
        pass

    def endpoints(self) -> list[object]:
        return []


@dataclass
class Tally:
    """Results of clients: answers by code, and how many of them were in time."""

    in_time: int = 0
    codes: dict[str, int] = field(default_factory=dict)

    def count(self, code: str) -> None:
        self.codes[code] = self.codes.get(code, 0) + 1


class Client:
    """Sends the next request as soon as it has an answer; pauses after a refusal."""

    def __init__(self, world: World, rows: int, pause_s: float, headers: dict[bytes, bytes]):
        self.world = world
        self.rows = rows
        self.pause_s = pause_s
        self.headers = headers
        self.tenancy = None
        self.job = None
        self.client_cluster = 0
        self.sent_at = 0.0
        self.pending = False

    def ask(self) -> None:
        if self.world.done:
            return
        self.pending = True
        self.sent_at = monotonic()
        self.world.ask(self)

    def respond(self, status: int, body: bytes, headers: bytes = b"") -> None:
        took_s = monotonic() - self.sent_at
        self.world.tally.in_time += took_s <= self.world.timeout_s
        self.world.tally.count("200")
        self._again(0.0)

    def refuse(self, refusal: object, headers: bytes = b"") -> None:
        self.world.tally.count(refusal.code)
        self._again(self.pause_s)

    def _again(self, pause_s: float) -> None:
        assert self.pending, "answered twice"
        self.pending = False
        loop = asyncio.get_running_loop()
        loop.call_later(pause_s, self.ask)


class World:
    """A data plane before a slow model."""

    def __init__(self, triton: SlowTriton, numbers: Callable[[], float] = lambda: 1.0, **changes):
        settings = {
            "timeout_ms": 1_000,
            "batching": Batching(max_batch_size=32),
            "breaker": Breaker(),
        }
        route = model(**settings | changes)
        self.timeout_s = route.timeout_ms / 1000
        self.triton = triton
        self.numbers = numbers
        self.telemetry = Telemetry(stopped_clock())
        self.serving = Serving(triton, self.telemetry, asyncio.get_running_loop(), 4)
        self.serving.apply(table(route, 1))
        self.predictor = Predictor(self.serving, self.telemetry)
        self.tally = Tally()
        self.clients: list[Client] = []
        self.done = False

    def ask(self, client: Client) -> None:
        self.predictor.predict(client, client.rows, "sums", None, self._read, _plain)

    def _read(self, codec: object, rows: int) -> InferRequest:
        import struct

        packed = b"".join(struct.pack("<4f", self.numbers(), 2, 3, 4) for _ in range(rows))
        return InferRequest(rows, [packed], None, ((4,),))

    async def run(self, clients: int, seconds: float, rows: int = 1, pause_s: float = 0.002):
        """Run `clients` clients for `seconds` seconds; return their results."""
        mine = [Client(self, rows, pause_s, {}) for _ in range(clients)]
        self.clients += mine
        for client in mine:
            client.ask()
        await asyncio.sleep(seconds)
        return self.tally

    def runtime(self, version: str = "1"):
        live = self.serving.model("sums")
        return self.serving.lane(live, live.router.explicit(version)).runtime

    async def stop(self) -> None:
        """Stop all clients, and wait until all have their answers."""
        self.done = True
        self.triton.hangs = False
        await until(lambda: not any(client.pending for client in self.clients))


def _plain(*_: object) -> tuple[bytes, bytes]:
    return b"", b""
