"""What was read from bytes that came before: a hit need neither parse JSON nor pack numbers.

Only requests that hit the cache are remembered, so traffic that never repeats costs a look-up and
no memory. The oldest leaves first. Reading depends on the table, so a new table empties the memo.
"""

from __future__ import annotations

import asyncio

from dataplane.codec import InferRequest

# Whose request it is, the body, and the header that says where its JSON ends.
Origin = tuple[object, bytes, bytes | None]

# What a remembered request costs beyond its bytes; measured and a fifth more.
OVERHEAD_BYTES = 480
# Something larger than this part of the bound would push out too many others.
PART_MAX = 8
# Requests let go of in one turn of the loop.
DROPPED_AT_ONCE = 500


class Memo:
    """Requests by the bytes that they were read from and all else that their reading depends on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, entries_max: int, bytes_max: int) -> None:
        # Lets go of requests, a few in each turn.
        self._loop = loop
        # Requests that may be remembered.
        self._entries_max = entries_max
        # The sum of their sizes that may be remembered.
        self._bytes_max = bytes_max
        # The requests, the oldest first.
        self._requests: dict[Origin, InferRequest] = {}
        # Looks a request up; bound once, since it is called for each request of a cached model.
        self.get = self._requests.get
        # The sum of their sizes.
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._requests)

    def put(self, origin: Origin, request: InferRequest) -> None:
        """Remember `request`."""
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
        """Remember nothing any more."""
        if self._requests:
            self._loop.call_soon(self._let_go, self._requests)
            self._requests = {}
            self.get = self._requests.get
            self.bytes = 0

    def _let_go(self, requests: dict[Origin, InferRequest]) -> None:
        for _ in range(min(DROPPED_AT_ONCE, len(requests))):
            requests.popitem()
        if requests:
            self._loop.call_soon(self._let_go, requests)


def _size(origin: Origin, request: InferRequest) -> int:
    return len(origin[1]) + sum(map(len, request.tensors)) + OVERHEAD_BYTES
