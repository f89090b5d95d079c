"""A memo of parsed requests by their bytes: a hit neither parses JSON nor packs numbers.

Only requests that hit the cache are remembered, so traffic without repetitions costs a lookup and
no memory. The oldest entry is evicted first. Parsing depends on the table, so a new table empties
the memo.
"""

from __future__ import annotations

import asyncio

from dataplane.codec import InferRequest

# The model's cache, the body, and the header with the length of its JSON.
Origin = tuple[object, bytes, bytes | None]

# Memory of an entry beyond its bytes; measured, plus a fifth.
OVERHEAD_BYTES = 480
# A request larger than this fraction of the limit would evict too many others.
PART_MAX = 8
# Requests released per turn of the loop.
DROPPED_AT_ONCE = 500


class Memo:
    """Parsed requests by their bytes and everything else that parsing depends on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, entries_max: int, bytes_max: int) -> None:
        # Releases requests, a few in each turn.
        self._loop = loop
        # Maximum requests.
        self._entries_max = entries_max
        # Maximum sum of their sizes.
        self._bytes_max = bytes_max
        # The requests, oldest first.
        self._requests: dict[Origin, InferRequest] = {}
        # Looks up a request; bound once, because it is called for each request of a cached model.
        self.get = self._requests.get
        # The sum of their sizes.
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._requests)

    def put(self, origin: Origin, request: InferRequest) -> None:
        size = _size(origin, request)
        requests = self._requests
        if origin in requests or size > self._bytes_max // PART_MAX:
            return
        requests[origin] = request
        self.bytes += size
        while len(requests) > self._entries_max or self.bytes > self._bytes_max:
            oldest = next(iter(requests))
            self.bytes -= _size(oldest, requests.pop(oldest))

    def clear(self) -> None:
        """Forget all requests."""
        if self._requests:
            self._loop.call_soon(self._release, self._requests)
            self._requests = {}
            self.get = self._requests.get
            self.bytes = 0

    def _release(self, requests: dict[Origin, InferRequest]) -> None:
        for _ in range(min(DROPPED_AT_ONCE, len(requests))):
            requests.popitem()
        if requests:
            self._loop.call_soon(self._release, requests)


def _size(origin: Origin, request: InferRequest) -> int:
    return len(origin[1]) + sum(map(len, request.tensors)) + OVERHEAD_BYTES
