"""Tables, requests and upstreams for the tests of the data plane."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from time import monotonic, time
from typing import Any

import orjson

from contract.routing import (
    Batching,
    Breaker,
    CanarySplit,
    Cluster,
    ExperimentSplit,
    ModelRoute,
    RoutingTable,
    Signature,
    Tensor,
    VariantRoute,
    VersionRoute,
)
from dataplane.batching import Batcher
from dataplane.codec import InferRequest
from dataplane.serving import Serving
from dataplane.triton import Fault, Reply, TritonError

SUMS = Signature(
    inputs=(Tensor(name="x", datatype="FP32", shape=(-1, 4)),),
    outputs=(
        Tensor(name="sum", datatype="FP32", shape=(-1, 1)),
        Tensor(name="label", datatype="INT64", shape=(-1, 1)),
    ),
)
EXPERIMENT = ExperimentSplit(
    id="e1",
    inclusion_salt="in",
    variant_salt="va",
    coverage_bp=10_000,
    variants=(
        VariantRoute(name="control", version="1", weight_bp=5_000),
        VariantRoute(name="treatment", version="2", weight_bp=5_000),
    ),
)


def canary(weight_bp: int, **changes: Any) -> CanarySplit:
    return CanarySplit(id="r1", salt="s", version="2", weight_bp=weight_bp, **changes)


def model(**changes: Any) -> ModelRoute:
    """Return a model whose versions 1 and 2 are `sums.1` and `sums.2` in Triton."""
    settings: dict[str, Any] = {
        "signature": SUMS,
        "stable": "1",
        "versions": {
            n: VersionRoute(cluster="main", triton_model=f"sums.{n}", triton_version=n)
            for n in ("1", "2")
        },
        "batching": Batching(max_batch_size=4, max_queue_delay_us=5_000, max_queue_size=64),
        "breaker": Breaker(window=4, failures=2, open_ms=50),
        "timeout_ms": 2_000,
    }
    return ModelRoute(**settings | changes)


def table(
    route: ModelRoute, generation: int = 1, endpoints: tuple[str, ...] = ("127.0.0.1:1",)
) -> RoutingTable:
    return RoutingTable(
        generation=generation,
        models={"sums": route},
        clusters={"main": Cluster(endpoints=endpoints)},
    )


def body(*rows: list[float], **extras: Any) -> bytes:
    """Return an infer request with these rows."""
    data = [value for row in rows for value in row]
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), 4], "data": data}
    return json.dumps({"inputs": [tensor], **extras}).encode()


def rows_of(request: bytes) -> tuple[dict[str, Any], list[tuple[float, ...]]]:
    """Parse an infer request as Triton gets it: its JSON, and the rows of `x`."""
    head, _, payload = request.partition(b"\r\n\r\n")
    lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    length = int(lines[b"inference-header-content-length"])
    assert int(lines[b"content-length"]) == len(payload)
    return orjson.loads(payload[:length]), list(struct.iter_unpack("<4f", payload[length:]))


def sums_reply(request: bytes) -> Reply:
    """Answer as the model `sums` does: the sum of each row, and a label for its sign.

    A row that contains 666 fails the whole batch, as a bad row does.
    """
    _, rows = rows_of(request)
    if any(666.0 in row for row in rows):
        return Reply(500, None, b'{"error":"poison"}')
    n = len(rows)
    # As a float of the model's own width: it overflows to infinity.
    sums = [total if abs(total) < 3.4e38 else float("inf") for total in map(sum, rows)]
    header = orjson.dumps(
        {
            "outputs": [
                {"name": "label", "datatype": "INT64", "shape": [n, 1],
                 "parameters": {"binary_data_size": 8 * n}},
                {"name": "sum", "datatype": "FP32", "shape": [n, 1],
                 "parameters": {"binary_data_size": 4 * n}},
            ]
        }
    )  # fmt: skip
    data = struct.pack(f"<{n}q{n}f", *[int(s > 0) for s in sums], *sums)
    return Reply(200, len(header), header + data)


def known(batcher: Batcher, row_s: float = 0.0001, rows: int = 4) -> Batcher:
    """Let `batcher` have observed batches whose rows took `row_s`; return it.

    Without observations it sends one row.
    """
    pace = batcher._pace
    for _ in range(16):
        now = monotonic()
        pace.answered(rows, pace.sent(rows, now), now - rows * row_s, now)
        pace._ended_at = now - rows * row_s
    batcher._queue.rows_max = pace.batch_rows
    return batcher


def knowing(serving: Serving) -> Serving:
    """Return `serving`, with versions that are known to be quick from the start."""
    make = serving._batcher

    def known_batcher(*origin: Any) -> Batcher:
        return known(make(*origin))

    serving._batcher = known_batcher  # type: ignore[method-assign]
    return serving


class HeldTriton:
    """Replaces `dataplane.triton.Triton`; the test decides when and what is answered."""

    def __init__(self, answer: Callable[[bytes], Reply | TritonError] | None = None) -> None:
        # With `answer` calls end by themselves in the next turn; otherwise the test ends them.
        self.answer = answer
        self.calls: list[tuple[bytes, Callable[[Reply | TritonError], None]]] = []
        self.timeouts: list[float] = []
        self.kept: set[str] | None = None

    def post(self, addresses: Any, request: bytes, timeout_s: float, on_done: Any) -> None:
        self.calls.append((request, on_done))
        self.timeouts.append(timeout_s)
        if self.answer is not None:
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: on_done(self.answer(request)))  # type: ignore[misc]

    def keep_only(self, addresses: set[str]) -> None:
        self.kept = addresses

    def endpoints(self) -> list[Any]:
        return []

    def batch_sizes(self) -> list[int]:
        return [len(rows_of(request)[1]) for request, _ in self.calls]

    def finish(self, index: int, result: Reply | TritonError | None = None) -> None:
        """End the call `index`, with `result` or else its correct answer."""
        request, on_done = self.calls[index]
        on_done(result if result is not None else sums_reply(request))


class Waiter:
    """A job that records its result."""

    def __init__(
        self, *rows: list[float], deadline: float = 1e12, key: object = None, priority: int = 1
    ) -> None:
        packed = b"".join(struct.pack("<4f", *row) for row in rows)
        self.request = InferRequest(len(rows), [packed], key, ((4,),))
        self.deadline = deadline
        self.submitted_at = monotonic()
        self.is_urgent = False
        self.priority = priority
        self.sums: list[float] | None = None
        self.error: TritonError | None = None

    def answered(self, outputs: Any, start: int, dispatched_at: float) -> None:
        assert self.sums is None
        assert self.error is None
        rows = outputs[0].rows_json()[start : start + self.request.rows]
        self.sums = [float(row) for row in rows]

    def failed(self, error: TritonError) -> None:
        assert self.sums is None
        assert self.error is None
        self.error = error


DEAD = TritonError(Fault.DEAD, "Stub process is not healthy")


class Upstream:
    """A real socket that speaks the needed part of Triton's HTTP, and misbehaves on demand."""

    def __init__(self) -> None:
        self.ready = True
        self.requests: list[bytes] = []
        # What to do with the next requests: "answer", "close", "hang", "half-close" (send no more
        # but keep reading), "cut" (close in the middle of an answer), or bytes to send.
        self.script: list[str | bytes] = []
        # What to do with requests when the script is empty.
        self.always: str | bytes = "answer"
        self.connections = 0
        # The time of each answer to an infer request.
        self.delay_s = 0.0
        self.address = ""
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Upstream:
        return await self.start()

    async def start(self, host: str = "127.0.0.1", port: int = 0, **options: Any) -> Upstream:
        """Listen; `options` are those of an asyncio server."""
        self._server = await asyncio.start_server(self._serve, host, port, **options)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Close the listener and every connection."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line[15:])
                request = head + await reader.readexactly(length)
                self.requests.append(request)
                act = self.script.pop(0) if self.script else self.always
                if act == "close":
                    return
                if act == "cut":
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf an ans")
                    return
                if act == "half-close":
                    writer.write_eof()
                if act in ("hang", "half-close"):
                    await reader.read()
                    return
                if b"/infer" in head:
                    await asyncio.sleep(self.delay_s)
                writer.write(act if isinstance(act, bytes) else self._answer(request))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, request: bytes) -> bytes:
        if not self.ready:
            status = 400 if request.startswith(b"GET") else 503
            reply = Reply(status, None, b'{"error":"Model version not ready"}')
        elif request.startswith(b"GET"):
            status, reply = 200, Reply(200, None, b"")
        else:
            reply = sums_reply(request)
            status = reply.status
        lines = [b"HTTP/1.1 %d X" % status, b"Content-Length: %d" % len(reply.body)]
        if reply.header_length is not None:
            lines.append(b"Inference-Header-Content-Length: %d" % reply.header_length)
        return b"\r\n".join(lines) + b"\r\n\r\n" + reply.body


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for something that another process or a real socket does."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def stopped_clock() -> Callable[[], float]:
    """Return a clock that stands still, so that no window ends unless a test asks for it."""
    now = time()
    return lambda: now


@asynccontextmanager
async def running(loops: list[Coroutine[None, None, None]]) -> AsyncIterator[None]:
    """Run background loops for the time of the block."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
