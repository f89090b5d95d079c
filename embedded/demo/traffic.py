"""The simulated users of the demo: a process that sends held-out images to the data plane.

`python -m embedded.demo.traffic URL RATE` sends up to RATE requests/s with `tritonclient`, fewer on
a slow machine. Each request is from a random user, who always sends the same image; some users use
the twin model. The outcome `correct` reports whether the predicted label is right. The process
prints one JSON line of running totals per second. A line of input sets the users' timeout in
milliseconds; 0 is the model's timeout. The process stops when its input closes, so that it never
outlives the demo.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

from embedded.demo.classifiers import PIXELS, Digits, load_digits
from embedded.demo.registry import MODEL, TWIN

USERS = 200_000
# One in TWIN_EVERY requests is from a user of the twin.
TWIN_EVERY = 4
IN_FLIGHT_MAX = 64
OUTCOMES_EVERY_S = 0.5
LATENCIES_KEPT = 200_000
# The pace rises up to the rate and falls while the median latency is above this: the demo shows
# decisions, not an overload, and leaves the control plane its share of a busy machine.
EASE_MS = 150.0
PACE_FIRST_PER_S = 40.0
PACE_LEAST_PER_S = 20.0
FASTER, SLOWER = 1.3, 0.7
# Part of the data plane's error when a deadline is too short for the queue (503).
OVERLOADED = "too busy to answer before the deadline"


@dataclass
class Totals:
    """The clients' totals since the start; latencies in milliseconds."""

    requests: int = 0
    errors: int = 0
    # Requests that exceeded the timeout of an impatient user.
    given_up: int = 0
    # The users' current timeout in milliseconds; 0: the model's timeout.
    patience_ms: int = 0
    fallbacks: int = 0
    correct: int = 0
    skipped: int = 0
    outcomes: int = 0
    outcome_errors: int = 0
    last_error: str = ""
    by_version: dict[str, int] = field(default_factory=dict)
    p50_ms: float = 0.0
    p95_ms: float = 0.0


class Users:
    """All users: an open loop at an adaptive pace, with a limit of requests in flight."""

    def __init__(self, url: str, rate: float, digits: Digits) -> None:
        self.url = url
        self.rate = rate
        self.digits = digits
        self.totals = Totals()
        self.latencies_ms: list[float] = []
        # The current requests per second, and the latencies since its last change.
        self.pace = min(PACE_FIRST_PER_S, rate)
        self.recent_ms: list[float] = []
        self.outcomes: list[dict[str, Any]] = []
        self.in_flight: set[asyncio.Task[None]] = set()
        self.random = random.Random(7)  # noqa: S311 (users, not secrets)

    async def run(self, stop: asyncio.Event) -> None:
        from tritonclient.http.aio import InferenceServerClient

        client = InferenceServerClient(
            self.url.removeprefix("http://"), conn_limit=IN_FLIGHT_MAX, conn_timeout=30
        )
        loops = (self._print_totals(), self._post_outcomes())
        background = [asyncio.create_task(loop) for loop in loops]
        try:
            await self._send_all(client, stop)
            await asyncio.wait(self.in_flight or {asyncio.create_task(asyncio.sleep(0))})
        finally:
            for task in background:
                task.cancel()
            await client.close()

    async def read_input(self, reader: asyncio.StreamReader, stop: asyncio.Event) -> None:
        """Read the users' timeout in milliseconds from each line; stop at the end of input."""
        async for line in reader:
            self.totals.patience_ms = int(line)
        stop.set()

    async def _send_all(self, client: Any, stop: asyncio.Event) -> None:
        due = time.perf_counter()
        while not stop.is_set():
            # Requests missed during a stall are not sent in a burst afterwards.
            due = max(due, time.perf_counter() - 1.0) + self.random.expovariate(self.pace)
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            if len(self.in_flight) >= IN_FLIGHT_MAX:
                self.totals.skipped += 1
                continue
            task = asyncio.create_task(self._send(client, *self._draw_user()))
            self.in_flight.add(task)
            task.add_done_callback(self.in_flight.discard)

    def _draw_user(self) -> tuple[str, str, int]:
        """Return a model, one of its users, and the row of this user's image."""
        user = self.random.randrange(USERS)
        model = TWIN if self.random.randrange(TWIN_EVERY) == 0 else MODEL
        name = f"user-{user}" if model == MODEL else f"twin-user-{user}"
        return model, name, user % len(self.digits.held_x)

    async def _send(self, client: Any, model: str, user: str, row: int) -> None:
        from tritonclient.http.aio import InferInput, InferRequestedOutput

        image = InferInput("X", [1, PIXELS], "FP32")
        image.set_data_from_numpy(self.digits.held_x[row : row + 1], binary_data=False)
        label = InferRequestedOutput("label", binary_data=False)
        headers = {"x-unit-id": user}
        is_impatient = self.totals.patience_ms > 0
        if is_impatient:
            headers["x-interlock-timeout-ms"] = str(self.totals.patience_ms)
        started = time.perf_counter()
        self.totals.requests += 1
        try:
            result = await client.infer(model, [image], outputs=[label], headers=headers)
        except Exception as error:  # any exception at a client is an error of the service
            if is_impatient and _is_timeout(error):
                self.totals.given_up += 1
                return
            self.totals.errors += 1
            at, took_s = f"{datetime.now(UTC):%H:%M:%S}", time.perf_counter() - started
            self.totals.last_error = f"{model} at {at} after {took_s:.1f} s: {error}"[:200]
            return
        took_ms = (time.perf_counter() - started) * 1_000
        self.latencies_ms.append(took_ms)
        self.recent_ms.append(took_ms)
        self._count(result, model, user, row)

    def _count(self, result: Any, model: str, user: str, row: int) -> None:
        response = result.get_response()
        if model == MODEL:
            version = str(response.get("model_version", "?"))
            self.totals.by_version[version] = self.totals.by_version.get(version, 0) + 1
        correct = int(result.as_numpy("label").ravel()[0]) == int(self.digits.held_y[row])
        self.totals.correct += correct
        self.outcomes.append({"unit_id": user, "metric": "correct", "value": float(correct)})

    async def _post_outcomes(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=10) as client:
            while True:
                await asyncio.sleep(OUTCOMES_EVERY_S)
                batch, self.outcomes = self.outcomes, []
                if not batch:
                    continue
                try:
                    response = await client.post("/outcomes", json=batch)
                    response.raise_for_status()
                    self.totals.outcomes += len(batch)
                except httpx.HTTPError as error:
                    self.totals.outcome_errors += len(batch)
                    self.totals.last_error = f"outcomes: {error}"[:200]

    def _set_pace(self) -> None:
        """Raise the pace while the median latency is below EASE_MS, lower it otherwise."""
        recent, self.recent_ms = sorted(self.recent_ms), []
        is_full = len(self.in_flight) >= IN_FLIGHT_MAX
        is_at_ease = bool(recent) and recent[len(recent) // 2] < EASE_MS and not is_full
        pace = self.pace * (FASTER if is_at_ease else SLOWER)
        self.pace = min(self.rate, max(PACE_LEAST_PER_S, pace))

    async def _print_totals(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._set_pace()
            self.latencies_ms = self.latencies_ms[-LATENCIES_KEPT:]
            ordered = sorted(self.latencies_ms)
            if ordered:
                self.totals.p50_ms = ordered[len(ordered) // 2]
                self.totals.p95_ms = ordered[int(len(ordered) * 0.95)]
            print(json.dumps(asdict(self.totals)), flush=True)


def _is_timeout(error: Exception) -> bool:
    """Return whether the user's timeout expired, or the data plane refused it as too short."""
    from tritonclient.utils import InferenceServerException

    if not isinstance(error, InferenceServerException):
        return False
    return error.status() == "504" or OVERLOADED in str(error)


async def main(url: str, rate: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    users = Users(url, rate, load_digits())
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    # The input ends with the demo, even if the demo is killed.
    reading = asyncio.create_task(users.read_input(reader, stop))
    with contextlib.suppress(asyncio.CancelledError):
        await users.run(stop)
    reading.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
