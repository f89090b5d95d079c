"""Estimate the number of different units from k-minimum-values sketches. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from contract.messages import SKETCH_K

HASHES = 2**64


def merge(*sketches: Iterable[int]) -> list[int]:
    """Return the sketch of all units of `sketches`: the smallest different hashes, ascending."""
    return sorted({value for sketch in sketches for value in sketch})[:SKETCH_K]


def estimate(smallest: Sequence[int]) -> float:
    """Estimate the units in a sketch; relative error 1/√(k − 2): 4.4 % (Bar-Yossef et al. 2002).

    With fewer than `SKETCH_K` values the count is exact. Otherwise (k − 1)·2⁶⁴ / the largest.
    """
    if len(smallest) < SKETCH_K:
        return float(len(smallest))
    return (SKETCH_K - 1) * HASHES / max(smallest)


def to_signed(values: Iterable[int]) -> list[int]:
    """Convert unsigned 64-bit numbers to PostgreSQL's signed bigint."""
    return [value - HASHES if value >= HASHES // 2 else value for value in values]


def from_signed(values: Iterable[int]) -> list[int]:
    return [value % HASHES for value in values]
