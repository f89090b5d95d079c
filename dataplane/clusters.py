"""In which cluster a request is counted: a share of the units by a hash that is always the same.

Counts by cluster show how alike the requests of a unit are. A unit's cluster comes from the bucket
that decides about its version, so that it costs no second hash.
"""

from __future__ import annotations

from xxhash import xxh3_64_intdigest

from contract.messages import CLUSTERS


def cluster_of_bucket(bucket: int) -> int:
    """Return the cluster of the units in `bucket`."""
    return bucket % CLUSTERS


def cluster_of(name: bytes) -> int:
    """Return the cluster of a client that sends no units: of its API key, or its address."""
    return xxh3_64_intdigest(name) % CLUSTERS
