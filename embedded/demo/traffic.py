"""Users of the demo: a process that replays held-out images through the data plane.

`python -m embedded.demo.traffic URL RATE` sends RATE requests/s with `tritonclient`, fewer where
the machine cannot answer so many at ease, each from a random user who always shows the same image,
and posts whether the answer was right as the outcome `correct`. Some are users of the twin, who ask
that model. It prints one JSON line of running totals each second. A line of input says for how many
milliseconds users wait from now on, 0 for as long as the model may take. It stops when its input
closes, so that it never outlives the demo.
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
# One of so many requests comes from a user of the twin.
TWIN_EVERY = 4
IN_FLIGHT_MAX = 64
OUTCOMES_EVERY_S = 0.5
LATENCIES_KEPT = 200_000
# Users come faster and faster up to the rate, and fewer come while half of the answers take longer
# than this: the demo shows how decisions are made, not what happens in an overload.
EASE_MS = 150.0
PACE_FIRST_PER_S = 40.0
PACE_LEAST_PER_S = 20.0
FASTER, SLOWER = 1.3, 0.7
# How a version says that it could not answer in time (503).
OVERLOADED = "too busy to answer before the deadline"


@dataclass
class Totals:
    """What the clients saw since the start; latency in milliseconds."""

    requests: int = 0
    errors: int = 0
    # Requests that were given up: not answered in the time that an impatient user gave.
    given_up: int = 0
    # How long users wait at present, in milliseconds; 0: as long as the model may take.
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


class Crowd:
    """All users together: an open loop at a constant rate, with a bound on what is in flight."""

    def __init__(self, url: str, rate: float, digits: Digits) -> None:
        self.url = url
        self.rate = rate
        self.digits = digits
        self.totals = Totals()
        self.latencies_ms: list[float] = []
        # Requests per second at present, and the latencies since it was last thought over.
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
        background = [asyncio.create_task(loop) for loop in (self._tell(), self._post_outcomes())]
        try:
            await self._send_all(client, stop)
            await asyncio.wait(self.in_flight or {asyncio.create_task(asyncio.sleep(0))})
        finally:
            for task in background:
                task.cancel()
            await client.close()

    async def obey(self, orders: asyncio.StreamReader, stop: asyncio.Event) -> None:
        """Take each line as the users' patience in milliseconds; the end of input stops it all."""
        async for line in orders:
            self.totals.patience_ms = int(line)
        stop.set()

    async def _send_all(self, client: Any, stop: asyncio.Event) -> None:
        due = time.perf_counter()
        while not stop.is_set():
            # Who could not come while the machine stood still does not come in a crowd afterwards.
            due = max(due, time.perf_counter() - 1.0) + self.random.expovariate(self.pace)
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            if len(self.in_flight) >= IN_FLIGHT_MAX:
                self.totals.skipped += 1
                continue
            task = asyncio.create_task(self._ask(client, *self._anybody()))
            self.in_flight.add(task)
            task.add_done_callback(self.in_flight.discard)

    def _anybody(self) -> tuple[str, str, int]:
        """Return a model, one of its users, and the image that this user shows."""
        user = self.random.randrange(USERS)
        model = TWIN if self.random.randrange(TWIN_EVERY) == 0 else MODEL
        name = f"user-{user}" if model == MODEL else f"twin-user-{user}"
        return model, name, user % len(self.digits.held_x)

    async def _ask(self, client: Any, model: str, user: str, row: int) -> None:
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
            answer = await client.infer(model, [image], outputs=[label], headers=headers)
        except Exception as error:  # whatever a client may see of us is an error of ours
            if is_impatient and _ran_out_of_time(error):
                self.totals.given_up += 1
                return
            self.totals.errors += 1
            at, took_s = f"{datetime.now(UTC):%H:%M:%S}", time.perf_counter() - started
            self.totals.last_error = f"{model} at {at} after {took_s:.1f} s: {error}"[:200]
            return
        took_ms = (time.perf_counter() - started) * 1_000
        self.latencies_ms.append(took_ms)
        self.recent_ms.append(took_ms)
        self._note(answer, model, user, row)

    def _note(self, answer: Any, model: str, user: str, row: int) -> None:
        response = answer.get_response()
        if model == MODEL:
            version = str(response.get("model_version", "?"))
            self.totals.by_version[version] = self.totals.by_version.get(version, 0) + 1
        correct = int(answer.as_numpy("label").ravel()[0]) == int(self.digits.held_y[row])
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
        """Send more of the rate while answers come at ease, and less while they do not."""
        recent, self.recent_ms = sorted(self.recent_ms), []
        is_full = len(self.in_flight) >= IN_FLIGHT_MAX
        is_at_ease = bool(recent) and recent[len(recent) // 2] < EASE_MS and not is_full
        pace = self.pace * (FASTER if is_at_ease else SLOWER)
        self.pace = min(self.rate, max(PACE_LEAST_PER_S, pace))

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._set_pace()
            self.latencies_ms = self.latencies_ms[-LATENCIES_KEPT:]
            ordered = sorted(self.latencies_ms)
            if ordered:
                self.totals.p50_ms = ordered[len(ordered) // 2]
                self.totals.p95_ms = ordered[int(len(ordered) * 0.95)]
            print(json.dumps(asdict(self.totals)), flush=True)


def _ran_out_of_time(error: Exception) -> bool:
    """Say whether the time that the user gave ran out, or is refused as too little at once."""
    from tritonclient.utils import InferenceServerException

    if not isinstance(error, InferenceServerException):
        return False
    return error.status() == "504" or OVERLOADED in str(error)


async def main(url: str, rate: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    crowd = Crowd(url, rate, load_digits())
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    # End of input is the demo's end, also when it was killed.
    obeying = asyncio.create_task(crowd.obey(orders, stop))
    with contextlib.suppress(asyncio.CancelledError):
        await crowd.run(stop)
    obeying.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
