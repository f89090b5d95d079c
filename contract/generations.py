"""A generation is the number of a routing table. It carries an epoch, and only grows.

Tables are numbered 1, 2, 3, … within an epoch, and the next epoch begins far above all of them:
`generation = epoch × EPOCH_SIZE + number`. So whoever compares two generations compares epochs
first, a data plane that knows nothing of epochs as well; what is older than all of this is epoch 0.
The control plane starts an epoch when its database was restored and has forgotten generations that
data planes serve from.
"""

from __future__ import annotations

# Decimal, so that a person can read it: 3000000000042 is table 42 of epoch 3. JSON's readers keep
# integers exact up to 2^53, which is epoch 9,007; a trillion tables are 300 a second for 100 years.
EPOCH_SIZE = 10**12
EPOCH_MAX = 2**53 // EPOCH_SIZE - 1


def epoch_of(generation: int) -> int:
    """Return the epoch that `generation` belongs to; 0 for none."""
    return max(0, generation) // EPOCH_SIZE


def first_of(epoch: int) -> int:
    """Return the generation of the first table of `epoch`."""
    return epoch * EPOCH_SIZE + 1


def in_words(generation: int) -> str:
    """Return `generation` as people read it: `42`, or `42 of epoch 3`."""
    epoch = epoch_of(generation)
    return f"{generation - epoch * EPOCH_SIZE} of epoch {epoch}" if epoch else str(generation)
