"""One instance: creates its parts, listens, runs the background loops, stops gracefully."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from contextlib import suppress
from email.utils import formatdate
from typing import TYPE_CHECKING

import httpx
import redis.asyncio as redis

from contract.message_signatures import HOME_HEADER, INSTANCE_HEADER, Sealer
from dataplane import redis_client
from dataplane.admission import Admission
from dataplane.cache import Cache, SharedCache, shared_client
from dataplane.config import Config, keep_grpc_over_forks
from dataplane.emergency_pin import Pins
from dataplane.heartbeat import Heartbeat
from dataplane.http_listener import Server
from dataplane.http_protocol import HttpConnection
from dataplane.http_routes import Application
from dataplane.instance_identity import Standing, read_home
from dataplane.pin_file import PinFile
from dataplane.predict import Predictor
from dataplane.quotas.leases import Leases
from dataplane.quotas.ledger import Ledger
from dataplane.reading import Reading
from dataplane.serving import Serving
from dataplane.shadow.mirror import Shadows
from dataplane.spool_dir import SpoolDir
from dataplane.staleness import Staleness
from dataplane.stream import Publisher
from dataplane.sync import REPORT_PATH, Sync
from dataplane.table_reader import TableFile
from dataplane.telemetry import Telemetry
from dataplane.triton import Triton

if TYPE_CHECKING:
    from dataplane.grpc_service import GrpcService

log = logging.getLogger("interlock.dataplane")

CONTROL_TIMEOUT_S = 5.0
REDIS_TIMEOUT_S = 5.0
# Seconds after the last new connection for which connections still take a request, and answer that
# they close: a request in transit is not lost.
SETTLE_S = 0.5
ADOPT_INTERVAL_S = 10.0
# Aborted connections are closed within a few turns of the loop.
CUT_TIMEOUT_S = 1.0


class Instance:
    """The parts of one data-plane process."""

    def __init__(self, config: Config, loop: asyncio.AbstractEventLoop) -> None:
        # The settings.
        self.config = config
        # The loop that all parts run on.
        self._loop = loop
        # Identifies this boot in everything that is sent.
        self.boot = f"{int(time.time()):x}{secrets.token_hex(4)}"
        config.state_dir.mkdir(parents=True, exist_ok=True)
        # Sends the calls to the model servers.
        self.triton = Triton(loop, config.endpoint_connections_max, config.transport)
        # Counters and exposures.
        self.telemetry = Telemetry(time.time)
        # Sends requests to shadows, on connections of its own, so that live requests do not wait.
        self.shadows = _shadows(config, loop)
        # The applied table at run time.
        self.serving = self._make_serving(config)
        # The quota counters that the workers share; None if the disk cannot store them.
        self._ledger = _ledger(config)
        # Admits requests by tenant.
        self.serving.admission = Admission(config.group.workers, ledger=self._ledger)
        # Caches answers.
        self.cache = self.serving.cache = _cache(config, loop)
        # One client for streams and wake-ups; it reconnects by itself.
        self._redis = _redis_client(config)
        # The identity of the state directory, which distinguishes instances of the same name; and
        # whether the control plane accepts this instance.
        self._home, is_new = read_home(config.state_dir)
        self.standing = Standing(REPORT_PATH, is_new=is_new)
        # Leases the instance's part of the quotas.
        self._leases = self._make_leases(config)
        # The HTTP client of the control plane.
        self._control = self._control_client()
        # The spool of this process, in a directory of its own, and those of earlier processes.
        self._spool_dir = SpoolDir(config.state_dir / "spool", self.boot, config.spool_bytes_max)
        # Adopts the spools of earlier processes.
        self._adopt = Heartbeat("adopt")
        # Sends telemetry and outcomes.
        self.publisher = self._make_publisher(config)
        # Keeps the table current.
        self.sync = self._make_sync(config)
        # The models that the operator pinned to stable.
        self.pins = Pins(PinFile(config.state_dir / "pins.json"), self.serving.pin)
        # Watches the age of the table.
        self._staleness = Staleness(self.sync, config.group.staleness, config.group.stale_after_s)
        # Reads large requests.
        self.reading = Reading(config.limits.body_bytes_max, config.limits.bodies_bytes_max)
        predictor = Predictor(self.serving, self.telemetry, self.reading)
        # Answers requests.
        self.application = Application(
            predictor,
            self.publisher,
            self.sync,
            self.boot,
            self.pins,
            config.group.operator_token,
            self._staleness,
        )
        # Manages the client connections.
        self.server = Server(self.application, config.limits)
        # Further connections are closed at once.
        self.server.connections_max = config.connections_max
        # Listeners by the number of their socket; a single worker has one.
        self._listeners: dict[int, asyncio.Server] = {}
        # Serves gRPC, if enabled, and its port.
        self._grpc: GrpcService | None = None
        self.grpc_port: int | None = None
        # Background loops, referenced so that they are not garbage collected.
        self._tasks: list[asyncio.Task[None]] = []

    def _make_serving(self, config: Config) -> Serving:
        return Serving(
            self.triton,
            self.telemetry,
            self._loop,
            config.batches_in_flight_max,
            shadows=self.shadows,
            instances=config.triton_instances,
        )

    def _make_publisher(self, config: Config) -> Publisher:
        return Publisher(
            self._spool_dir.spool,
            self._redis,
            self.telemetry,
            instance=config.instance_name,
            boot=self.boot,
            interval_s=config.telemetry_interval_s,
            generation=lambda: self.serving.generation,
            shadows=self.shadows.drain,
            pairs=self.shadows.drain_pairs,
            stream_bytes_max=config.stream_bytes_max,
            sealer=Sealer(config.instance_token, config.instance_name, self.boot, self._home),
            check=self.standing.check,
        )

    def _control_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.config.control_url,
            headers={
                "authorization": f"Bearer {self.config.instance_token}",
                INSTANCE_HEADER: self.config.instance_name,
                HOME_HEADER: self._home,
            },
            event_hooks={"response": [self.standing.note]},
            timeout=CONTROL_TIMEOUT_S,
            trust_env=False,
        )

    def _make_leases(self, config: Config) -> Leases | None:
        if self._ledger is None:
            return None
        tenants = self.serving.admission.limited_lines
        lock = config.state_dir / "quotas.lock"
        # Another instance may have the same name by mistake; it has a share too.
        name = f"{_name_and_slot(config)[0]}:{self._home}"
        return Leases(self._ledger, self._redis, name, tenants, lock)

    def _make_sync(self, config: Config) -> Sync:
        return Sync(
            self.serving,
            self.triton,
            self._control,
            self._redis,
            TableFile(config.state_dir / "routing-table.json"),
            instance=config.instance_name,
            boot=self.boot,
            dropped=lambda: self.publisher.dropped,
            poll_interval_s=config.poll_interval_s,
            report_interval_s=config.report_interval_s,
            warmup_timeout_s=config.transport.warmup_timeout_s,
        )

    async def start(self) -> int:
        """Prepare, and listen on a socket of our own; return the port."""
        await self.prepare()
        config = self.config
        await self.listen_grpc()
        listener = self._listeners[0] = await self._loop.create_server(
            self._connection, config.host, config.port, backlog=1_024
        )
        port = int(listener.sockets[0].getsockname()[1])
        log.info("listening: %s:%d as %s", config.host, port, config.instance_name)
        return port

    async def prepare(self) -> None:
        """Serve from the stored table if there is one, and start the background loops."""
        await self.sync.start_from_disk()
        adopt = self._adopt.run(self._spool_dir.adopt, ADOPT_INTERVAL_S)
        loops = [*self.sync.loops(), *self.publisher.loops(), adopt, self._tick()]
        if self._leases is not None:
            loops.append(self._leases.run())
        self._tasks = [self._loop.create_task(loop) for loop in loops]

    async def listen_grpc(self) -> None:
        """Serve gRPC as well, if it is enabled; workers share its port."""
        if self.config.grpc_bind is not None:
            await self._start_grpc(*self.config.grpc_bind)

    async def accept(self, sockets: dict[int, socket.socket]) -> None:
        """Accept on these listening sockets, which the parent owns, and on no others."""
        for number in self._listeners.keys() - sockets.keys():
            self._listeners.pop(number).close()
        for number in sockets.keys() - self._listeners.keys():
            self._listeners[number] = await self._loop.create_server(
                self._connection, sock=sockets[number].dup(), backlog=1_024
            )

    def _connection(self) -> HttpConnection:
        return HttpConnection(self.server)

    async def _start_grpc(self, host: str, port: int) -> None:
        keep_grpc_over_forks()
        # Imported here, because it takes time and memory that instances without gRPC need not
        # spend.
        from dataplane.grpc_service import GrpcService

        config, application = self.config, self.application
        self._grpc = GrpcService(
            application.predictor,
            application.not_ready,
            application.operator,
            config.limits,
            config.connections_max,
        )
        self.grpc_port = await self._grpc.start(host, port)
        log.info("listening: %s:%d for gRPC", host, self.grpc_port)

    async def stop(self, *, replaced: bool = False) -> None:
        """Fail readiness, finish requests in flight, flush and report, within `stop_timeout_s`.

        If another process has taken over (`replaced`), no new connections are answered here.
        """
        started_at = self._loop.time()
        self.application.stopping = True
        self.server.stopping = True
        try:
            async with asyncio.timeout(self.config.stop_timeout_s * 0.6):
                await self._drain(0.0 if replaced else self.config.group.lame_duck_s)
        except TimeoutError:
            log.warning("stop: %d connections are aborted", len(self.server.connections))
            await self._abort()
        if self._leases is not None:
            self._leases.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(self.config.stop_timeout_s * 0.3):
                await self._send_last(stopping=not replaced)
        except TimeoutError:
            log.warning("stop: the last report or the last telemetry was not sent in time")
        self.triton.close()
        self.shadows.close()
        await self.reading.close()
        await self.cache.close()
        await self._redis.aclose()  # type: ignore[attr-defined]
        await self._control.aclose()
        self._spool_dir.close()
        if self._leases is not None:
            self._leases.close()
        log.info("stopped: after %.1f s", self._loop.time() - started_at)

    async def _drain(self, lame_duck_s: float) -> None:
        # Gives load balancers time to notice that readiness fails.
        await asyncio.sleep(lame_duck_s)
        await self.accept({})
        await asyncio.sleep(SETTLE_S)
        self.server.stop()
        if self._grpc is not None:
            await self._grpc.stop(self.config.stop_timeout_s * 0.4)
        await self.server.emptied()

    async def _abort(self) -> None:
        """Abort the connections and their requests in progress: each request must have its end."""
        self.server.abort()
        if self._grpc is not None:
            await self._grpc.stop(0.0)
        # The loop reports an aborted connection some turns later.
        with suppress(TimeoutError):
            async with asyncio.timeout(CUT_TIMEOUT_S):
                await self.server.emptied()

    async def _send_last(self, *, stopping: bool) -> None:
        await self.publisher.store_outcomes()
        await self.publisher.flush_telemetry(is_last=True)
        results = await asyncio.gather(
            self.publisher.send_spooled(),
            self.sync.report(stopping=stopping),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, Exception):
                # Data on disk is sent after the next start.
                log.warning("stop: %s", result)

    def tick(self) -> None:
        """Update the headers that every answer carries, and close connections that are too slow."""
        self.server.tick(formatdate(usegmt=True).encode())
        self.server.date += self._staleness.header()

    async def _tick(self) -> None:
        while True:
            self.tick()
            await asyncio.sleep(1.0)


def _shadows(config: Config, loop: asyncio.AbstractEventLoop) -> Shadows:
    return Shadows(
        Triton(loop, config.shadow_connections_max),
        loop,
        time.time,
        batches_max=config.shadow_connections_max,
        copies_max=config.shadow_in_flight_max,
        bytes_max=config.shadow_bytes_max,
    )


def _cache(config: Config, loop: asyncio.AbstractEventLoop) -> Cache:
    shared = SharedCache(shared_client(config.redis_url), loop, config.cache_timeout_ms / 1000)
    return Cache(loop, shared, config.cache_entries_max, config.cache_bytes_max)


def _name_and_slot(config: Config) -> tuple[str, int]:
    """Return the name of the instance, without the worker's slot, and the slot."""
    if config.group.workers == 1:
        return config.instance_name, 0
    name, _, slot = config.instance_name.rpartition("/")
    return (name, int(slot)) if name and slot.isdecimal() else (config.instance_name, 0)


def _ledger(config: Config) -> Ledger | None:
    try:
        return Ledger(config.state_dir / "quotas", _name_and_slot(config)[1])
    except OSError as error:
        log.warning("quotas.alone: each worker enforces a share of the limits: %s", error)
        return None


def _redis_client(config: Config) -> redis.Redis[bytes]:
    return redis_client.connect(config.redis_url, timeout_s=REDIS_TIMEOUT_S)
