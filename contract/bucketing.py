"""The bucketing function maps a unit to a bucket, and so decides which version the unit gets.

`bucket = xxh3_64(salt + ":" + unit) mod 10000`, UTF-8. The test vectors in
`tests/contract/golden/bucketing.json` fix it for clients in any language.
"""

from __future__ import annotations

from xxhash import xxh3_64_intdigest

BUCKETS = 10_000


def bucket(salt: str, unit: str) -> int:
    """Return the bucket of `unit` under `salt`, an integer in [0, 10000)."""
    return xxh3_64_intdigest(f"{salt}:{unit}".encode()) % BUCKETS
