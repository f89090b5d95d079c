"""The parent of an instance: starts the workers, and keeps what must outlive any of them.

It answers no requests. It holds the listening sockets, so that a connection which no worker has
accepted yet survives a worker; lets a sibling serve the socket of a dead worker, and refuses
connections while no worker can serve them; replaces workers one by one on SIGHUP; kills a worker
that hangs; merges the workers' metrics, including those of dead ones; and distributes the
operator's pins. Workers outlive it: see `handover`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from time import monotonic
from typing import Any

import msgspec

from dataplane.config import Config
from dataplane.handover import Successor
from dataplane.hang_detector import Silence
from dataplane.metrics import Page
from dataplane.pin_file import Outcome, PinFile, changed
from dataplane.sockets import refuse
from dataplane.worker_rpc import Peer, PeerGone

log = logging.getLogger("interlock.dataplane")

# A worker that lived this long did not fail to start.
GOOD_LIFE_S = 10.0
BACK_OFF_S = 0.2
BACK_OFF_MAX_S = 5.0
# Seconds of a stop beyond the workers' own time limit.
STOP_SLACK_S = 3.0
SNAPSHOT_TIMEOUT_S = 2.0
PIN_TIMEOUT_S = 1.0
# Interval of the check for silent workers.
LOOK_S = 0.2
# A dead worker is restarted in about this time, and connections in its queue are then answered;
# after it, clients are refused.
UNSERVED_S = 2.0


class Child:
    """The parent's view of a worker."""

    def __init__(self, slot: int, process: asyncio.subprocess.Process) -> None:
        # The number of its own socket.
        self.slot = slot
        # The process.
        self.process = process
        # The connection to it.
        self.peer: Peer
        # Set once it can take requests.
        self.ready = asyncio.Event()
        # Set once it has exited.
        self.exited = asyncio.Event()
        # When it was started, monotonic.
        self.started_at = monotonic()
        # The last page of metrics that it sent.
        self.page = b""
        # How long it has given no sign of life; until it is ready, how long it has been starting.
        self.silence = Silence(process.pid)

    def beat(self) -> None:
        """Record a sign of life, once it is ready: a start may be busy for long."""
        if self.ready.is_set():
            self.silence.beat()

    def become_ready(self) -> None:
        self.ready.set()
        self.silence.beat()

    def send(self, number: int) -> None:
        """Send a signal, unless it has exited."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)


class Supervisor:
    """Keeps the workers of one instance alive. Raises OSError if the state is not writable."""

    def __init__(
        self, config: Config, sockets: list[socket.socket], successor: Successor | None = None
    ) -> None:
        # The settings.
        self._config = config
        # Stops the workers of an earlier parent, if they have outlived it.
        self._successor = successor
        # Seconds for which no worker was ready, as far as the parent itself was running.
        self._unserved_s = 0.0
        # One listening socket for each worker, all on the same port.
        self._sockets = sockets
        # The worker of each slot; None while it is down.
        self._current: list[Child | None] = [None] * config.group.workers
        # All workers that are alive, including those that start or stop.
        self._children: set[Child] = set()
        # Consecutive deaths, by slot.
        self._failures = [0] * config.group.workers
        # Unexpected deaths since the start.
        self._restarts = 0
        # The counters of dead workers.
        self._carried = Page()
        # The pinned models, on disk.
        config.state_dir.mkdir(parents=True, exist_ok=True)
        self._pin_file = PinFile(config.state_dir / "pins.json")
        # The pinned models.
        self._pins = self._pin_file.load()
        # One change of them at a time.
        self._pinning = asyncio.Lock()
        # One rolling restart at a time.
        self._rolling = asyncio.Lock()
        # Set when the instance stops.
        self._stop = asyncio.Event()
        # Background tasks, referenced so that they are not garbage collected.
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Run the instance until SIGTERM or SIGINT; SIGHUP replaces the workers one by one."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn_task(self.roll()))
        host, port = self._sockets[0].getsockname()[:2]
        log.info(
            "listening: %s:%d as %s, workers: %d",
            host, port, self._config.instance_name, len(self._sockets),
        )  # fmt: skip
        for slot in range(len(self._sockets)):
            self._current[slot] = await self._start(slot)
        self._spawn_task(self._look())
        if self._successor is not None:
            self._spawn_task(self._successor.welcome())
        await self._stop.wait()
        await self._stop_all()
        return 0

    # --- starting and stopping workers ---------------------------------------------------------

    async def _start(self, slot: int) -> Child:
        ours, theirs = socket.socketpair()
        descriptors = (theirs.fileno(), *(item.fileno() for item in self._sockets))
        arguments = (slot, os.getpid(), *descriptors)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dataplane.worker", *map(str, arguments), pass_fds=descriptors
        )
        theirs.close()
        child = Child(slot, process)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        child.peer = Peer(reader, writer, self._handlers(child))
        self._children.add(child)
        # It may have read the file before the last change was stored.
        child.peer.notify("pins", sorted(self._pins))
        self._spawn_task(self._watch(child))
        return child

    def _handlers(self, child: Child) -> dict[str, Any]:
        async def ready(_: None) -> None:
            child.become_ready()
            self._unserved_s = 0.0
            self._assign()

        async def last(page: bytes) -> None:
            child.page = page

        async def removed(versions: list[tuple[str, str]]) -> None:
            self._carried = self._carried.without({(name, number) for name, number in versions})

        async def beat(_: None) -> None:
            child.beat()

        ours = {"ready": ready, "last": last, "gone": removed, "beat": beat}
        return {**ours, "scrape": self._scrape, "pin": self._pin}

    async def _look(self) -> None:
        """Kill workers that give no sign of life: they hold connections and do not answer."""
        before = monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            now = monotonic()
            # While the machine or this process was stopped, no worker could be heard.
            self.pass_time(min(now - before, 2 * LOOK_S))
            before = now

    def pass_time(self, elapsed_s: float) -> None:
        """Count `elapsed_s` of silence, and kill workers that were silent for too long."""
        group = self._config.group
        for child in self._children:
            child.silence.pass_time(elapsed_s)
            silent_s = child.silence.seconds
            if child.ready.is_set() and silent_s > group.worker_silent_s:
                reason, setting = "gave no sign of life", "INTERLOCK_WORKER_SILENT_S"
            elif not child.ready.is_set() and silent_s > group.worker_start_s:
                reason, setting = "was not ready", "INTERLOCK_WORKER_START_S"
            else:
                continue
            log.error(
                "worker.silent: killing worker %d, which %s for %.1f s (%s)",
                child.slot, reason, silent_s, setting,
            )  # fmt: skip
            child.silence.beat()
            child.send(signal.SIGKILL)
        self._refuse_if_unserved(elapsed_s)

    def _refuse_if_unserved(self, elapsed_s: float) -> None:
        """Refuse connections once no worker has served for a while: they would wait in vain."""
        is_served = self._successor is not None and self._successor.has_orphans
        if is_served or self._ready_workers():
            self._unserved_s = 0.0
            return
        before, self._unserved_s = self._unserved_s, self._unserved_s + elapsed_s
        if before < UNSERVED_S <= self._unserved_s:
            refuse(self._sockets)

    def _ready_workers(self) -> list[Child]:
        return [c for c in self._current if c is not None and c.ready.is_set()]

    async def _watch(self, child: Child) -> None:
        await child.peer.run()
        code = await child.process.wait()
        self._children.discard(child)
        if child.page:
            totals = Page.decode(child.page).totals()
            self._carried = Page.merged((self._carried, totals))
        child.exited.set()
        if self._current[child.slot] is child:
            self._current[child.slot] = None
            self._assign()
            if not self._stop.is_set():
                self._spawn_task(self._restart(child, code))

    async def _restart(self, child: Child, code: int) -> None:
        slot = child.slot
        self._restarts += 1
        lived_s = monotonic() - child.started_at
        self._failures[slot] = 0 if lived_s >= GOOD_LIFE_S else self._failures[slot] + 1
        pause_s = min(BACK_OFF_MAX_S, BACK_OFF_S * (2 ** self._failures[slot] - 1))
        log.error("worker.died: worker %d, exit code %d; restarting in %.1f s", slot, code, pause_s)
        await asyncio.sleep(pause_s)
        if self._current[slot] is None and not self._stop.is_set():
            self._current[slot] = await self._start(slot)

    def _assign(self) -> None:
        """Assign sockets to workers: to each its own, and to the first those of dead workers."""
        ready = self._ready_workers()
        served = {child.slot for child in ready}
        orphans = [slot for slot in range(len(self._sockets)) if slot not in served]
        for child in ready:
            slots = [child.slot, *orphans] if child is ready[0] else [child.slot]
            with suppress(PeerGone):
                child.peer.notify("accept", slots)
        if self._successor is not None and not orphans:
            self._successor.dismiss()

    async def roll(self) -> None:
        """Replace the workers one by one; stop at a new one that does not become ready."""
        async with self._rolling:
            for slot in range(len(self._sockets)):
                if self._stop.is_set() or not await self._replace(slot):
                    return
            log.info("rolled: all workers were replaced")

    async def _replace(self, slot: int) -> bool:
        new = await self._start(slot)
        waits = [asyncio.create_task(event.wait()) for event in (new.ready, new.exited, self._stop)]
        # A worker that takes too long is killed by `_look`.
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self._stop.is_set():
            return False
        if not new.ready.is_set() or new.exited.is_set():
            log.error("worker.not_ready: the new worker %d failed; the old one keeps serving", slot)
            new.send(signal.SIGKILL)
            return False
        old, self._current[slot] = self._current[slot], new
        self._assign()
        if old is not None:
            with suppress(PeerGone):
                old.peer.notify("leave")
            await self._await_exit(old)
        return True

    async def _await_exit(self, child: Child) -> None:
        try:
            async with asyncio.timeout(self._config.stop_timeout_s + STOP_SLACK_S):
                await child.exited.wait()
        except TimeoutError:
            log.warning("worker.killed: worker %d did not stop in time", child.slot)
            child.send(signal.SIGKILL)
            await child.exited.wait()

    async def _stop_all(self) -> None:
        if self._successor is not None:
            self._successor.dismiss()
        children = list(self._children)
        for child in children:
            child.send(signal.SIGTERM)
        await asyncio.gather(*map(self._await_exit, children))
        for item in self._sockets:
            item.close()

    def _spawn_task(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- calls that concern all workers --------------------------------------------------------

    async def _scrape(self, _: None) -> bytes:
        """Return the text of the metrics of all workers, alive and dead."""
        await asyncio.gather(*map(self._snapshot, [c for c in self._children if c.ready.is_set()]))
        # A worker that died meanwhile is in `_carried`. One that hangs keeps its last page.
        pages = [Page.decode(child.page) for child in self._children if child.page]
        page = Page.merged([*pages, self._carried])
        page.family("interlock_workers", "gauge", "Workers alive.", [((), len(self._children))])
        ready = [((), len(self._ready_workers()))]
        page.family("interlock_ready_workers", "gauge", "Workers that are ready.", ready)
        page.family(
            "interlock_worker_restarts_total",
            "counter",
            "Workers that died unexpectedly and were restarted.",
            [((), self._restarts)],
        )
        return page.text()

    async def _snapshot(self, child: Child) -> None:
        with suppress(PeerGone, TimeoutError):
            child.page = await child.peer.call("snapshot", None, SNAPSHOT_TIMEOUT_S)

    async def _pin(self, change: tuple[str, bool]) -> dict[str, Any]:
        """Pin or unpin in every worker and on disk; return the outcome."""
        model, pin = change
        async with self._pinning:
            self._pins = changed(self._pins, model, pin=pin)
            names = sorted(self._pins)
            children = list(self._children)
            stored, *confirmed = await asyncio.gather(
                asyncio.to_thread(self._pin_file.store, self._pins),
                *(self._send_pins(child, names) for child in children),
            )
        outcome = Outcome(names, stored, len(children), sum(confirmed))
        return msgspec.structs.asdict(outcome)

    async def _send_pins(self, child: Child, names: list[str]) -> bool:
        try:
            if not child.ready.is_set():
                # It takes no requests yet, and reads this before any.
                child.peer.notify("pins", names)
            else:
                await child.peer.call("pins", names, PIN_TIMEOUT_S)
        except (PeerGone, TimeoutError):
            return False
        return True
