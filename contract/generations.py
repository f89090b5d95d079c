"""A generation is the number of a routing table; it includes an epoch, and only grows.

Tables are numbered 1, 2, 3, … within an epoch, and the next epoch begins far above all of them:
`generation = epoch × EPOCH_SIZE + number`. Comparing two generations therefore compares epochs
first, also in a data plane that does not know epochs; generations from before epochs existed are
epoch 0. The control plane starts an epoch after its database was restored from a backup, because
the backup does not hold the generations that data planes serve meanwhile.
"""

from __future__ import annotations

# Decimal, so that people can read it: 3000000000042 is table 42 of epoch 3. JSON readers keep
# integers exact up to 2^53, which is epoch 9,007; a trillion tables are 300 a second for 100 years.
EPOCH_SIZE = 10**12
EPOCH_MAX = 2**53 // EPOCH_SIZE - 1


def epoch_of(generation: int) -> int:
    """Return the epoch of `generation`; 0 for a negative generation, which means no table."""
    return max(0, generation) // EPOCH_SIZE


def first_of(epoch: int) -> int:
    return epoch * EPOCH_SIZE + 1


def in_words(generation: int) -> str:
    """Format `generation` for people: `42`, or `42 of epoch 3`."""
    epoch = epoch_of(generation)
    return f"{generation - epoch * EPOCH_SIZE} of epoch {epoch}" if epoch else str(generation)
