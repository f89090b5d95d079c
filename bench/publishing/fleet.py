"""Pollers with the protocol of the data planes, each like one worker, in a separate process.

They pull and report every 2 seconds, and at once when Redis wakes them. They apply deltas and
report the applied generation. They route no requests.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import httpx
import redis.asyncio as redis

from contract.deltas import MEDIA_TYPE
from contract.messages import InstanceReport, encode_report
from contract.routing import CHANNEL, RoutingTable
from dataplane.sync import REPORT_PATH, TABLE_PATH
from dataplane.table_reader import TableReader

INTERVAL_S = 2.0


@dataclass
class Tally:
    """The counts of the pollers since the last tally, and the bytes of their last pull."""

    unchanged: int = 0
    whole: int = 0
    delta: int = 0
    delta_bytes: int = 0
    whole_bytes: int = 0
    failed: int = 0
    # Seconds from the message that woke a poller until its ack of the new table.
    acked_s: list[float] = field(default_factory=list)


class Poller:
    """One worker of an instance."""

    def __init__(self, name: str, client: httpx.AsyncClient, tally: Tally, reports: Any) -> None:
        self._name = name
        self._client = client
        self._tally = tally
        # Set while the pollers also report.
        self._reports = reports
        self._reader = TableReader()
        self._table: RoutingTable | None = None
        self._etag = ""
        self.wake = asyncio.Event()
        # The time of the wake-up message, until its table is acked.
        self.woken_at: float | None = None

    async def run(self, phase_s: float) -> None:
        await asyncio.sleep(phase_s)
        while True:
            try:
                is_new = await self._pull()
                if self._reports.is_set():
                    await self._report()
                if is_new and self.woken_at is not None:
                    self._tally.acked_s.append(time.monotonic() - self.woken_at)
                    self.woken_at = None
            except httpx.HTTPError:
                self._tally.failed += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), INTERVAL_S)
            self.wake.clear()

    async def _pull(self) -> bool:
        """Pull the newest table; return False if there is no newer one."""
        headers = {"if-none-match": self._etag} if self._etag else {}
        response = await self._client.get(
            TABLE_PATH, headers={**headers, "accept": f"{MEDIA_TYPE}, application/json"}
        )
        if response.status_code == 304:
            self._tally.unchanged += 1
            return False
        response.raise_for_status()
        data = response.content
        if response.headers["content-type"] == MEDIA_TYPE:
            self._tally.delta += 1
            self._tally.delta_bytes = len(data)
            data = await self._reader.assemble_table(data)
        else:
            self._tally.whole += 1
        self._tally.whole_bytes = len(data)
        reading = await self._reader.read(data, self._table)
        self._reader.keep(reading)
        self._table, self._etag = reading.table, response.headers["etag"]
        return True

    async def _report(self) -> None:
        generation = self._table.generation if self._table is not None else 0
        report = InstanceReport(
            instance=self._name, boot="b", at_ms=int(time.time() * 1_000),
            applied_generation=generation,
        )  # fmt: skip
        response = await self._client.post(REPORT_PATH, content=encode_report(report))
        response.raise_for_status()


class Fleet:
    """The interface to the pollers' process."""

    def __init__(self, pipe: Connection, reports: Any) -> None:
        self._pipe = pipe
        self.reports = reports

    def tally(self) -> Tally:
        """Return the counts since the last call."""
        self._pipe.send("tally")
        tally: Tally = self._pipe.recv()
        return tally


@contextmanager
def polling(count: int, web: str, token: str, redis_url: str) -> Iterator[Fleet]:
    """Run `count` pollers while the block runs."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    reports = spawn.Event()
    reports.set()
    process = spawn.Process(
        target=_main, args=(count, web, token, redis_url, theirs, reports), daemon=True
    )
    process.start()
    try:
        yield Fleet(ours, reports)
    finally:
        process.kill()
        process.join()


def _main(count: int, web: str, token: str, redis_url: str, pipe: Connection, reports: Any) -> None:
    asyncio.run(_poll(count, web, token, redis_url, pipe, reports))


async def _poll(
    count: int, web: str, token: str, redis_url: str, pipe: Connection, reports: Any
) -> None:
    tally = Tally()
    async with httpx.AsyncClient(
        base_url=web,
        headers={"authorization": f"Bearer {token}"},
        timeout=10,
        limits=httpx.Limits(max_connections=count),
    ) as client:
        pollers = [Poller(f"edge/{k + 1}", client, tally, reports) for k in range(count)]
        async with asyncio.TaskGroup() as tasks:
            for k, poller in enumerate(pollers):
                tasks.create_task(poller.run(INTERVAL_S * k / count))
            tasks.create_task(_listen(redis_url, pollers))
            tasks.create_task(_send_tallies(pipe, tally))


async def _listen(redis_url: str, pollers: list[Poller]) -> None:
    async with redis.Redis.from_url(redis_url).pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(CHANNEL)
        while True:
            if await pubsub.get_message(timeout=5.0) is not None:
                for poller in pollers:
                    poller.woken_at = poller.woken_at or time.monotonic()
                    poller.wake.set()


async def _send_tallies(pipe: Connection, tally: Tally) -> None:
    while True:
        await asyncio.to_thread(pipe.recv)
        pipe.send(tally)
        tally.__init__()  # type: ignore[misc]
