"""`python -m dataplane.worker`: a process that answers requests, started by `dataplane.workers`.

It inherits the instance's listening sockets and a connection to its parent, accepts on the sockets
that the parent assigns, and stops when the parent says so. When the parent dies it serves on until
another parent takes over.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from math import ceil
from typing import Any

import msgspec
import uvloop

from dataplane.config import Config, load_own
from dataplane.handover import await_successor
from dataplane.instance import Instance
from dataplane.pin_file import Outcome
from dataplane.redis_client import cluster_fault
from dataplane.worker_rpc import Handler, Peer, PeerGone

log = logging.getLogger("interlock.dataplane")

# A worker takes requests after this many seconds, even if it has not tried to pull the table.
FIRST_PULL_S = 5.0
# Seconds to wait for the first response of Redis.
REDIS_CHECK_S = 0.5
SCRAPE_TIMEOUT_S = 5.0
PIN_TIMEOUT_S = 3.0
# The kernel ends a stop this long after its own time limit, even if the loop hangs.
STOP_SLACK_S = 2
# Signs of life: this many within the parent's time limit for silent workers, and at least one per
# second.
BEATS = 5
BEAT_S = 1.0


class Worker:
    """A process of an instance, and its connection to the parent."""

    def __init__(self, instance: Instance, sockets: list[socket.socket]) -> None:
        # Answers requests.
        self._instance = instance
        # The listening sockets of all workers, by number.
        self._sockets = sockets
        # Set when the worker must stop.
        self.leave = asyncio.Event()
        # Whether another process has taken over.
        self.replaced = False
        # Set once the worker can take requests.
        self.ready = asyncio.Event()
        # The connection to the parent.
        self.peer: Peer
        # Serves without a parent; referenced so that it is not garbage collected.
        self._orphaned: asyncio.Task[None]
        # Sends signs of life; referenced so that it is not garbage collected.
        self._beating: asyncio.Task[None]

    async def connect(self, channel: socket.socket) -> asyncio.Task[None]:
        """Serve the parent's calls, and route calls that concern all workers through the parent."""
        reader, writer = await asyncio.open_unix_connection(sock=channel)
        handlers: dict[str, Handler] = {
            "accept": self._accept,
            "snapshot": self._snapshot,
            "pins": self._pins,
            "leave": self._leave,
        }
        self.peer = Peer(reader, writer, handlers)
        task = asyncio.get_running_loop().create_task(self.peer.run())
        self._orphaned = asyncio.get_running_loop().create_task(self._serve_without_parent(task))
        self._beating = asyncio.get_running_loop().create_task(self._beat())
        instance = self._instance
        instance.application.scrapes.text = self._scrape
        instance.pins.change = self._change_pins
        instance.serving.on_removed = self._notify_removed
        return task

    async def _serve_without_parent(self, line: asyncio.Task[None]) -> None:
        """Once the parent is dead, serve all sockets until another parent has workers, or stop."""
        await asyncio.wait([line])
        instance = self._instance
        await self.ready.wait()
        if not self.leave.is_set():
            log.warning("parent.gone: serving on until another parent takes over")
            # Siblings may be dead too, and there is no parent to assign their sockets.
            await instance.accept(dict(enumerate(self._sockets)))
            instance.pins.change = instance.pins.change_alone
            self.replaced = await await_successor(instance.config, self._sockets)
        self.leave.set()

    async def page(self) -> bytes:
        """Return the metrics of this process, for the parent."""
        return (await self._instance.application.scrapes.collect()).encode()

    async def _beat(self) -> None:
        """Send signs of life from the event loop to the parent."""
        interval_s = min(BEAT_S, self._instance.config.group.worker_silent_s / BEATS)
        with suppress(PeerGone):
            while True:
                self.peer.notify("beat")
                await asyncio.sleep(interval_s)

    async def _accept(self, slots: list[int]) -> None:
        if not self.leave.is_set():
            await self._instance.accept({slot: self._sockets[slot] for slot in slots})

    async def _snapshot(self, _: None) -> bytes:
        return await self.page()

    async def _pins(self, names: list[str]) -> bool:
        self._instance.pins.take(frozenset(names))
        return True

    async def _leave(self, _: None) -> None:
        self.replaced = True
        self.leave.set()

    async def _scrape(self) -> bytes:
        text: bytes = await self.peer.call("scrape", None, SCRAPE_TIMEOUT_S)
        return text

    async def _change_pins(self, model: str, pin: bool) -> Outcome:
        reply: Any = await self.peer.call("pin", (model, pin), PIN_TIMEOUT_S)
        return msgspec.convert(reply, Outcome)

    def _notify_removed(self, versions: list[tuple[str, str]]) -> None:
        if versions:
            with suppress(PeerGone):
                self.peer.notify("gone", versions)


async def run(config: Config, channel: socket.socket, sockets: list[socket.socket]) -> int:
    """Serve until the parent or a signal stops the worker; return the exit code."""
    loop = asyncio.get_running_loop()
    instance = Instance(config, loop)
    worker = Worker(instance, sockets)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.leave.set)
    # The parent handles SIGHUP; a terminal or a process group may send it to all processes.
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    connection = await worker.connect(channel)
    check = loop.create_task(cluster_fault(config.redis_url))
    await instance.prepare()
    with suppress(TimeoutError):
        async with asyncio.timeout(FIRST_PULL_S):
            await instance.sync.tried.wait()
    # A Redis that does not respond must not delay the start.
    await asyncio.wait([check], timeout=REDIS_CHECK_S)
    if check.done() and (fault := check.result()):
        log.critical("redis.refused: %s", fault)
        return 2
    # The headers of the first answers should show that the table was confirmed.
    instance.tick()
    await instance.listen_grpc()
    settle_memory()
    worker.ready.set()
    with suppress(PeerGone):
        worker.peer.notify("ready")
    await worker.leave.wait()
    signal.alarm(ceil(config.stop_timeout_s) + STOP_SLACK_S)
    await instance.stop(replaced=worker.replaced)
    with suppress(PeerGone):
        worker.peer.notify("last", await worker.page())
        await worker.peer.flush()
    connection.cancel()
    return 0


def settle_memory() -> None:
    """Keep full garbage collections short and rare: objects of the start are not scanned again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 1_000)


def named(config: Config, slot: int) -> Config:
    """Return the settings of the worker `slot`: its name, and its share of common limits."""
    workers = config.group.workers
    if workers == 1:
        return config
    return replace(
        config,
        instance_name=f"{config.instance_name}/{slot}",
        spool_bytes_max=max(1, config.spool_bytes_max // workers),
    )


def main() -> int:
    """Run one worker; its arguments are numbers from `dataplane.workers`."""
    slot, parent, channel, *listeners = map(int, sys.argv[1:])
    if os.getppid() != parent:
        # The parent was killed before this worker started.
        return 1
    config = named(load_own(), slot)
    prefix = f"worker {slot}: " if config.group.workers > 1 else ""
    logging.basicConfig(
        level=logging.INFO, format=f"%(levelname)s {prefix}%(message)s", stream=sys.stderr
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sockets = [socket.socket(fileno=number) for number in listeners]
    return uvloop.run(run(config, socket.socket(fileno=channel), sockets))


if __name__ == "__main__":
    sys.exit(main())
