"""The cache of answers: in this process, in Redis, or of an identical request in flight."""

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
