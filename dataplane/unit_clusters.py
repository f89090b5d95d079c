"""Assigns requests to clusters: shares of the units by a hash that never changes.

Counts by cluster show how correlated the requests of a unit are. The cluster of a unit is derived
from the bucket that decides its version, so it costs no second hash.
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import unquote

from xxhash import xxh3_64_intdigest

from contract.messages import CLUSTERS


def cluster_of_bucket(bucket: int) -> int:
    """Return the cluster of the units in `bucket`."""
    return bucket % CLUSTERS


def cluster_of(name: bytes) -> int:
    """Return the cluster of a client without units: of its API key, or of its address."""
    return xxh3_64_intdigest(name) % CLUSTERS


@lru_cache(maxsize=4_096)
def cluster_of_peer(peer: str) -> int:
    """Return the cluster of an address in grpc's form, such as `ipv4:127.0.0.1:50000`.

    It is that of the same address over HTTP. Cached, because all calls of a connection have the
    same address.
    """
    kind, _, address = unquote(peer).partition(":")
    host = address.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""
    return cluster_of(host.encode())
