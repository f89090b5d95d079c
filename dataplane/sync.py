"""Pulls the routing table, checks it, applies or refuses it, and reports what is served.

A table is applied completely or refused completely. Refused is a table that contradicts itself,
that is older than the applied one, or that adds a version which does not answer on every endpoint
of its cluster (see `warmup`). The old table then stays in use, and the refused one is tried
again at each poll, because a version may become ready. The last good table is on disk, so that an
instance can start without a control plane.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine

import httpx
import msgspec
import redis.asyncio as redis
import xxhash

from contract.deltas import MEDIA_TYPE
from contract.generations import epoch_of, in_words
from contract.messages import InstanceReport, encode_report
from contract.routing import CHANNEL, Name, RoutingTable, TableError
from dataplane.heartbeat import Heartbeat
from dataplane.serving import Serving
from dataplane.table_reader import Reading, TableFile, TableReader, release_slowly
from dataplane.triton import Triton
from dataplane.warmup import Warmup

log = logging.getLogger("interlock.dataplane")

TABLE_PATH = "/api/dataplane/v1/routing-table"
REPORT_PATH = "/api/dataplane/v1/report"
LISTEN_S = 5.0


class Refused(Exception):
    """A pulled table that is not applied; `generation` is None if it could not be parsed."""

    def __init__(self, generation: int | None, reason: str) -> None:
        super().__init__(reason)
        # The refused generation, for the report.
        self.generation = generation


class Sync:
    """Keeps one instance at the newest table that it may apply."""

    def __init__(
        self,
        serving: Serving,
        triton: Triton,
        control: httpx.AsyncClient,
        client: redis.Redis[bytes],
        file: TableFile,
        *,
        instance: str,
        boot: str,
        dropped: Callable[[], dict[str, int]],
        poll_interval_s: float,
        report_interval_s: float,
        warmup_timeout_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Applies tables.
        self._serving = serving
        # Sends requests to new versions before they are served.
        self._warmup = Warmup(triton, warmup_timeout_s)
        # The HTTP client of the control plane, with its address and our token.
        self._control = control
        # Brings notifications of new tables.
        self._redis = client
        # The last good table on disk.
        self._file = file
        # Parses tables.
        self._reader = TableReader()
        # Hash and error of a table that could not be parsed: it is not tried again at each poll.
        self._unreadable: tuple[int, str] | None = None
        # The instance in reports.
        self._instance = instance
        # The boot in reports.
        self._boot = boot
        # Returns the messages dropped so far, for the report.
        self._dropped = dropped
        # Seconds between two polls without a notification.
        self._poll_interval_s = poll_interval_s
        # Seconds between two reports.
        self._report_interval_s = report_interval_s
        # The tag of the applied table, so that it is not pulled twice.
        self._etag: str | None = None
        # The refused generation and the reason, until a table is applied.
        self._refusal: tuple[int | None, str] | None = None
        # When the control plane last confirmed our table, monotonic; None before the first time.
        self.confirmed_at: float | None = None
        # Monotonic seconds: a wall clock that jumps must not make a table old.
        self._clock = clock
        # When this process started, on that clock.
        self._started_at = clock()
        # Wakes the poller early.
        self._wake = asyncio.Event()
        # Set once the first pull ended, successful or not.
        self.tried = asyncio.Event()
        # Wakes the reporter early.
        self._report_due = asyncio.Event()
        # Refusals since the start.
        self.refusals = 0
        # The heartbeats of the three loops.
        self.heartbeats = [Heartbeat(name) for name in ("poll", "listen", "report")]

    @property
    def table_age_s(self) -> float:
        """Seconds since the control plane last confirmed our table, or since the start."""
        since = self.confirmed_at if self.confirmed_at is not None else self._started_at
        return self._clock() - since

    def is_confirmed(self, within_s: float) -> bool:
        """Return whether the control plane confirmed our table in the last `within_s` seconds."""
        return self.confirmed_at is not None and self.table_age_s <= within_s

    def loops(self) -> list[Coroutine[None, None, None]]:
        """Return the loops that must run while the process lives."""
        poll, listen, report = self.heartbeats
        return [
            poll.run(self._poll, self._poll_interval_s, self._wake),
            listen.run(self._listen, LISTEN_S),
            report.run(self.report, self._report_interval_s, self._report_due),
        ]

    async def start_from_disk(self) -> None:
        """Serve from the stored table, if there is one: it was good, and better than none."""
        reading = await self._file.load(self._reader)
        if reading is not None:
            await self._apply(reading)
            log.info("table.restored: generation %s", in_words(reading.table.generation))

    async def _poll(self) -> None:
        try:
            await self.pull()
        finally:
            self.tried.set()

    async def pull(self) -> None:
        """Fetch the table and apply or refuse it. Raises httpx.HTTPError, TableError."""
        response = await self._control.get(TABLE_PATH, headers=self._conditions())
        if response.status_code == 304:
            # A table that was refused meanwhile came from another control plane, or is no longer
            # published.
            self._refusal = None
            self._confirmed()
            return
        response.raise_for_status()
        try:
            await self._consider(await self._table_in(response))
        except Refused as refused:
            self._refuse(refused)
            return
        self._etag = response.headers.get("etag")
        self._confirmed()

    def _conditions(self) -> dict[str, str]:
        """Return the headers that name the table that we have, and accept a delta from it."""
        if self._etag is None:
            return {}
        return {"if-none-match": self._etag, "accept": f"{MEDIA_TYPE}, application/json"}

    async def _table_in(self, response: httpx.Response) -> bytes:
        """Return the whole table from a response with a table or a delta. Raises Refused."""
        if response.headers.get("content-type") != MEDIA_TYPE:
            return response.content
        try:
            return await self._reader.assemble_table(response.content)
        except TableError as error:
            # The next poll gets the whole table.
            self._etag = None
            raise Refused(None, str(error)) from None

    async def report(self, *, stopping: bool = False) -> None:
        """Report to the control plane what is served. Raises httpx.HTTPError."""
        refusal = self._refusal
        report = InstanceReport(
            instance=self._instance,
            boot=self._boot,
            at_ms=int(time.time() * 1000),
            applied_generation=self._serving.generation,
            refused_generation=refusal[0] if refusal is not None else None,
            refusal=refusal[1] if refusal is not None else None,
            trips=self._serving.trips,
            dropped=self._dropped(),
            stopping=stopping,
            pinned=tuple(sorted(self._serving.pinned)),
        )
        response = await self._control.post(
            REPORT_PATH,
            content=encode_report(report),
            headers={"content-type": "application/json"},
        )
        response.raise_for_status()

    def report_soon(self) -> None:
        """Wake the reporter early."""
        self._report_due.set()

    # --- one table -----------------------------------------------------------------------------

    async def _consider(self, data: bytes) -> None:
        """Apply the table in `data`. Raises Refused."""
        applied = self._serving.table
        reading = await self._read(data, applied)
        table = reading.table
        if applied is not None and table.generation <= applied.generation:
            self._compare(reading, applied)
            return
        del applied
        await self._probe(table, reading.changed)
        await self._apply(reading)
        self._refusal = None
        self._report_due.set()
        log.info("table.applied: generation %s", in_words(table.generation))
        try:
            await asyncio.to_thread(self._file.store, data)
        except OSError as error:
            # It is served anyway; only a restart without a control plane would miss it.
            log.warning("table.not_stored: %s", error)

    async def _read(self, data: bytes, applied: RoutingTable | None) -> Reading:
        digest = xxhash.xxh3_64_intdigest(data)
        if self._unreadable is not None and self._unreadable[0] == digest:
            raise Refused(None, self._unreadable[1])
        try:
            reading = await self._reader.read(data, applied)
        except TableError as error:
            self._unreadable = (digest, str(error))
            raise Refused(None, str(error)) from None
        self._unreadable = None
        return reading

    async def _apply(self, reading: Reading) -> None:
        applied = self._serving.table
        # A copy keeps the old models alive until they are released one after another.
        old_models = dict(applied.models) if applied is not None else {}
        changed = (*reading.changed, *reading.removed)
        old_live = self._serving.apply(reading.table, changed, reading.removed_versions)
        old_lines = self._reader.keep(reading)
        del applied
        await release_slowly(old_live, old_lines, old_models)

    def _compare(self, reading: Reading, applied: RoutingTable) -> None:
        """Confirm the applied table; refuse an older one, or another one of the same generation."""
        table = reading.table
        if table.generation < applied.generation:
            raise Refused(table.generation, _older_reason(table.generation, applied.generation))
        if reading.changed or reading.removed or _frame(table) != _frame(applied):
            raise Refused(
                table.generation,
                f"generation {in_words(table.generation)} is already applied with other content",
            )
        self._refusal = None

    async def _probe(self, table: RoutingTable, changed: tuple[Name, ...]) -> None:
        """Send requests to every version that was not served so far. Raises Refused."""
        reasons = await self._warmup.run(table, changed, self._serving.table)
        if reasons:
            raise Refused(table.generation, "; ".join(reasons)[:1_000])

    def _refuse(self, refused: Refused) -> None:
        refusal = (refused.generation, str(refused))
        if refusal != self._refusal:
            self.refusals += 1
            self._refusal = refusal
            self._report_due.set()
            log.warning("table.refused: generation %s: %s", refused.generation, refused)

    def _confirmed(self) -> None:
        self.confirmed_at = self._clock()

    async def _listen(self) -> None:
        """Wake the poller for each notification, until the connection fails."""
        async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(CHANNEL)
            # One pull catches what was published before we listened.
            self._wake.set()
            listen = self.heartbeats[1]
            while True:
                message = await pubsub.get_message(timeout=LISTEN_S)
                if message is not None:
                    self._wake.set()
                listen.beat()


def _older_reason(generation: int, applied: int) -> str:
    """Return why a table older than the applied one is refused."""
    older = f"generation {in_words(generation)} is older than the applied {in_words(applied)}"
    if epoch_of(generation) < epoch_of(applied):
        return f"{older}: its control plane was replaced when epoch {epoch_of(applied)} began"
    return older


def _frame(table: RoutingTable) -> RoutingTable:
    """Return a table without its models."""
    return msgspec.structs.replace(table, models={})
