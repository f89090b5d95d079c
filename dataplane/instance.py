"""One instance: wires the parts, listens, runs the background loops, stops gracefully."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import time
from email.utils import formatdate

import httpx
import redis.asyncio as redis

from dataplane.app import Application
from dataplane.cache import Cache, SharedCache, shared_client
from dataplane.config import Config
from dataplane.http_protocol import HttpConnection, Server
from dataplane.pin import PinFile, Pins
from dataplane.predict import Predictor
from dataplane.serving import Serving
from dataplane.shadow.mirror import Shadows
from dataplane.spool import Spool
from dataplane.staleness import Staleness
from dataplane.stream import Publisher
from dataplane.sync import Sync
from dataplane.tables import TableFile
from dataplane.telemetry import Telemetry
from dataplane.triton import Triton

log = logging.getLogger("interlock.dataplane")

CONTROL_TIMEOUT_S = 5.0
REDIS_TIMEOUT_S = 5.0
# For so long after the stop began, connections still take a request, and answer that they close.
# A load balancer that has not yet seen the failing readiness loses nothing.
LAME_DUCK_S = 0.5


class Instance:
    """The parts of one data-plane process, wired together."""

    def __init__(self, config: Config, loop: asyncio.AbstractEventLoop) -> None:
        # What this instance was told.
        self._config = config
        # The loop that all parts run on.
        self._loop = loop
        # Tells restarts apart in everything that is sent.
        self.boot = f"{int(time.time()):x}{secrets.token_hex(4)}"
        config.state_dir.mkdir(parents=True, exist_ok=True)
        # Calls to the model servers.
        self.triton = Triton(loop, config.endpoint_connections_max, config.transport)
        # Counters and exposures.
        self.telemetry = Telemetry(time.time)
        # Copies of requests; their connections are their own, so that no live request waits.
        self.shadows = Shadows(
            Triton(loop, config.shadow_connections_max),
            loop,
            time.time,
            batches_max=config.shadow_connections_max,
            copies_max=config.shadow_in_flight_max,
            bytes_max=config.shadow_bytes_max,
        )
        # The applied table at run time.
        self.serving = Serving(
            self.triton,
            self.telemetry,
            loop,
            config.batches_in_flight_max,
            shadows=self.shadows,
        )
        # Answers that may be given again.
        self.cache = Cache(
            loop,
            SharedCache(shared_client(config.redis_url), loop, config.cache_timeout_ms / 1000),
            config.cache_entries_max,
            config.cache_bytes_max,
        )
        self.serving.cache = self.cache
        # One client for streams and wake-ups; it reconnects by itself.
        self._redis = _redis_client(config)
        # The client of the control plane.
        self._control = _control_client(config)
        # Carries telemetry and outcomes away.
        self.publisher = Publisher(
            Spool(config.state_dir / "spool", config.spool_bytes_max),
            self._redis,
            self.telemetry,
            instance=config.instance_name,
            boot=self.boot,
            interval_s=config.telemetry_interval_s,
            generation=lambda: self.serving.generation,
            shadows=self.shadows.drain,
        )
        # Keeps the table at its newest.
        self.sync = Sync(
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
        # What the operator pinned to stable.
        self.pins = Pins(PinFile(config.state_dir / "pins.json"), self.serving.pin)
        # Minds the age of the table.
        self._staleness = Staleness(self.sync, config.group.staleness, config.group.stale_after_s)
        predictor = Predictor(self.serving, self.telemetry, self.boot)
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
        # Holds the client connections.
        self.server = Server(self.application, config.limits)
        # Beyond this count connections are closed as they come.
        self.server.connections_max = config.connections_max
        # The listening socket, once it is open.
        self._listener: asyncio.Server | None = None
        # Background loops, referenced so that they are not collected.
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        """Serve from the stored table if there is one, listen, begin to sync; return the port."""
        config = self._config
        self.pins.load()
        await self.sync.start_from_disk()
        self._listener = await self._loop.create_server(
            lambda: HttpConnection(self.server), config.host, config.port, backlog=1_024
        )
        loops = [*self.sync.loops(), *self.publisher.loops(), self._tick()]
        self._tasks = [self._loop.create_task(loop) for loop in loops]
        port = int(self._listener.sockets[0].getsockname()[1])
        log.info("listening: %s:%d as %s", config.host, port, config.instance_name)
        return port

    async def stop(self) -> None:
        """Fail readiness, finish what is in flight, flush, say goodbye; within the bound."""
        started_at = self._loop.time()
        self.application.stopping = True
        self.server.stopping = True
        try:
            async with asyncio.timeout(self._config.stop_timeout_s * 0.6):
                await self._drain()
        except TimeoutError:
            log.warning("stop: %d connections are cut", len(self.server.connections))
            self.server.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(self._config.stop_timeout_s * 0.3):
                await self._say_goodbye()
        except TimeoutError:
            log.warning("stop: the last report or the last telemetry did not leave in time")
        self.triton.close()
        self.shadows.close()
        await self.cache.close()
        await self._redis.aclose()  # type: ignore[attr-defined]
        await self._control.aclose()
        log.info("stopped: after %.1f s", self._loop.time() - started_at)

    async def _drain(self) -> None:
        if self._listener is not None:
            self._listener.close()
        await asyncio.sleep(LAME_DUCK_S)
        self.server.stop()
        await self.server.emptied()

    async def _say_goodbye(self) -> None:
        await self.publisher.store_outcomes()
        await self.publisher.flush_telemetry()
        results = await asyncio.gather(
            self.publisher.send_spooled(),
            self.sync.report(stopping=True),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, Exception):
                # What is on disk leaves with the next start.
                log.warning("stop: %s", result)

    async def _tick(self) -> None:
        while True:
            self.server.tick(formatdate(usegmt=True).encode())
            self.server.date += self._staleness.header()
            await asyncio.sleep(1.0)


def _redis_client(config: Config) -> redis.Redis[bytes]:
    return redis.Redis.from_url(
        config.redis_url,
        socket_connect_timeout=REDIS_TIMEOUT_S,
        socket_timeout=REDIS_TIMEOUT_S,
    )


def _control_client(config: Config) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=config.control_url,
        headers={"authorization": f"Bearer {config.instance_token}"},
        timeout=CONTROL_TIMEOUT_S,
        trust_env=False,
    )


async def serve(config: Config) -> int:
    """Run one instance until SIGTERM or SIGINT; return the exit code."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    instance = Instance(config, loop)
    await instance.start()
    await stop.wait()
    await instance.stop()
    return 0
