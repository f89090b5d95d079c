"""Answers scrapes at `/metrics`, with the page of this process or of all workers together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from dataplane.errors import unavailable
from dataplane.exchange import Exchange
from dataplane.metrics import Page

log = logging.getLogger("interlock.dataplane")

PLAIN_TEXT = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"


class Scrapes:
    """Renders the page, and answers with it."""

    def __init__(self, collect: Callable[[], Awaitable[Page]]) -> None:
        # Collects the metrics of this process.
        self.collect = collect
        # Renders the text; with several workers it queries them all.
        self.text: Callable[[], Awaitable[bytes]] = self._own_text
        # Scrapes in progress, referenced so that they are not garbage collected.
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, exchange: Exchange) -> None:
        """Answer once the page is rendered; 503 if a sibling does not respond."""
        task = asyncio.get_running_loop().create_task(self._answer(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, exchange: Exchange) -> None:
        try:
            text = await self.text()
        except Exception as error:
            # A page without the siblings would make counters go backwards.
            log.warning("scrape.failed: %s: %s", type(error).__name__, error)
            exchange.refuse(unavailable("metrics_incomplete", "a worker's metrics are missing"))
            return
        exchange.respond(200, text, PLAIN_TEXT)

    async def _own_text(self) -> bytes:
        return (await self.collect()).text()
