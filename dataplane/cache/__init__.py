"""Answers that may be given again: in this process, in Redis, or from whoever asks the same now."""

from dataplane.cache.entry import Entry
from dataplane.cache.in_flight import CachedLane, Ticket
from dataplane.cache.shared import SharedCache, shared_client
from dataplane.cache.store import Cache, ModelCache

__all__ = [
    "Cache",
    "CachedLane",
    "Entry",
    "ModelCache",
    "SharedCache",
    "Ticket",
    "shared_client",
]
