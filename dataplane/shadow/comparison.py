"""Comparison of a shadow's answer with stable's: pure functions of two answers.

Outputs of integers, booleans and strings are labels; a row flips if one of them differs. Without a
label the class of a row is the index of its largest score, in the first floating-point output with
two or more elements per row. Work is done in slices of well under a millisecond; the rest is left
out: elements of a row beyond `ELEMENTS_MAX`, and string outputs of more than `STRING_BYTES_MAX` in
one reply.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, prod, sqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dataplane.datatypes import Datatype, as_array

# Elements that are compared: of one row, and of one output in a slice.
ELEMENTS_MAX = 1_024
# Ranking costs some microseconds per row, however short it is.
SLICE_ROWS_MAX = 16
STRING_BYTES_MAX = 16 * 1024

Floats = NDArray[np.float64]


class Answer(Protocol):
    """One output of a reply; `dataplane.batch_reply.Output` is one."""

    datatype: Datatype
    inner: tuple[int, ...]

    @property
    def size_bytes(self) -> int: ...

    def view(self, start: int, stop: int) -> memoryview: ...

    def raw(self, start: int, stop: int) -> bytes: ...


Pair = tuple[Answer, Answer]
# The numbers of stable and of the shadow; None if not finite.
Both = tuple[float | None, float | None]


@dataclass(slots=True)
class Difference:
    """The differences of some rows of two answers; the names are those of ShadowWindow."""

    rows: int = 0
    flips: int = 0
    beyond_tolerance: int = 0
    largest_difference: float = 0.0
    rank_correlation_sum: float = 0.0
    ranked: int = 0

    def add(self, other: Difference) -> None:
        """Add the differences of `other`."""
        self.rows += other.rows
        self.flips += other.flips
        self.beyond_tolerance += other.beyond_tolerance
        self.largest_difference = max(self.largest_difference, other.largest_difference)
        self.rank_correlation_sum += other.rank_correlation_sum
        self.ranked += other.ranked


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Numbers agree within `absolute + relative × |stable's number|`."""

    absolute: float
    relative: float


class Comparison:
    """Two answers to one request; `slices` compares some rows at a time."""

    __slots__ = ("_live", "_pairs", "_rows", "_scores", "_shadow", "_tolerance")

    def __init__(
        self,
        live: tuple[Sequence[Answer], int],
        shadow: tuple[Sequence[Answer], int],
        rows: int,
        tolerance: Tolerance,
    ) -> None:
        # Stable's outputs and the shadow's, in the order of the signature.
        self._pairs: list[Pair] = list(zip(live[0], shadow[0], strict=True))
        # Where the request's rows begin in each of them.
        self._live, self._shadow = live[1], shadow[1]
        # The number of rows.
        self._rows = rows
        # The tolerance of numbers.
        self._tolerance = tolerance
        # The output that ranks classes.
        self._scores = _scores(self._pairs)

    def slices(self) -> Iterator[Difference]:
        """Yield the differences of a few rows at a time; together they cover all rows."""
        width = max((prod(live.inner) for live, _ in self._pairs), default=1)
        step = max(1, min(SLICE_ROWS_MAX, ELEMENTS_MAX // max(width, 1)))
        for at in range(0, self._rows, step):
            yield self._compare(at, min(at + step, self._rows))

    def classes(self) -> Both:
        """Return the class of the first row: its first label, or the index of its largest score."""
        labels = (pair for pair in self._pairs if is_label(pair[0].datatype))
        label = next(labels, None)
        if label is not None:
            # Text classes have no number to compare with a metric.
            return self._first(label) if label[0].datatype.size else (None, None)
        if self._scores is None:
            return None, None
        live, shadow = self._numbers(self._scores, 0, 1)
        return float(live[0].argmax()), float(shadow[0].argmax())

    def scores(self) -> Both:
        """Return the only number of the first row, or the second of two: a class's probability."""
        numbers = [pair for pair in self._pairs if not is_label(pair[0].datatype)]
        single = next((pair for pair in numbers if prod(pair[0].inner) == 1), None)
        pair = single or next((pair for pair in numbers if prod(pair[0].inner) == 2), None)
        return self._first(pair, -1) if pair is not None else (None, None)

    def _first(self, pair: Pair, place: int = 0) -> Both:
        if pair[0].inner != pair[1].inner:
            return None, None
        live, shadow = (float(rows[0, place]) for rows in self._numbers(pair, 0, 1))
        return _finite(live), _finite(shadow)

    def _compare(self, start: int, stop: int) -> Difference:
        rows = stop - start
        difference = Difference(rows=rows)
        flipped = np.zeros(rows, bool)
        beyond = np.zeros(rows, bool)
        labelled = False
        for pair in self._pairs:
            if is_label(pair[0].datatype):
                labelled = True
                flipped |= self._labels_differ(pair, start, stop)
            elif pair[0].inner != pair[1].inner:
                beyond[:] = True
            else:
                live, shadow = self._numbers(pair, start, stop)
                outside, largest = beyond_tolerance(live, shadow, self._tolerance)
                beyond |= outside
                difference.largest_difference = max(difference.largest_difference, largest)
        if self._scores is not None:
            live, shadow = self._numbers(self._scores, start, stop)
            if not labelled:
                flipped |= live.argmax(axis=1) != shadow.argmax(axis=1)
            _rank(difference, live, shadow)
        difference.flips = int(flipped.sum())
        difference.beyond_tolerance = int(beyond.sum())
        return difference

    def _labels_differ(self, pair: Pair, start: int, stop: int) -> NDArray[np.bool_]:
        live, shadow = pair
        rows = stop - start
        if live.inner != shadow.inner:
            return np.ones(rows, bool)
        at, other = self._live + start, self._shadow + start
        if live.datatype.size:
            ours = _block(live, at, rows)
            differs: NDArray[np.bool_] = (ours != _block(shadow, other, rows)).any(axis=1)
            return differs
        if max(live.size_bytes, shadow.size_bytes) > STRING_BYTES_MAX:
            return np.zeros(rows, bool)
        return np.array(
            [live.raw(at + i, at + i + 1) != shadow.raw(other + i, other + i + 1)
             for i in range(rows)]
        )  # fmt: skip

    def _numbers(self, pair: Pair, start: int, stop: int) -> tuple[Floats, Floats]:
        rows = stop - start
        return (
            _block(pair[0], self._live + start, rows).astype(np.float64),
            _block(pair[1], self._shadow + start, rows).astype(np.float64),
        )


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None


def is_label(datatype: Datatype) -> bool:
    """Return whether elements of `datatype` name a class instead of measuring something."""
    return datatype.name not in ("FP16", "BF16", "FP32", "FP64")


def beyond_tolerance(
    live: Floats, shadow: Floats, tolerance: Tolerance
) -> tuple[NDArray[np.bool_], float]:
    """Return which rows have a number beyond `tolerance`, and the largest finite difference.

    NaN agrees with NaN and an infinity with itself; against a number either is beyond.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        differences = np.abs(live - shadow)
        allowed = tolerance.absolute + tolerance.relative * np.abs(live)
        finite = np.isfinite(live) & np.isfinite(shadow)
        same = (live == shadow) | (np.isnan(live) & np.isnan(shadow))
        agree = np.where(finite, differences <= allowed, same)
    largest = float(differences.max(where=finite, initial=0.0))
    return ~agree.all(axis=1), min(largest, sys.float_info.max)


def rank_correlation(live: Floats, shadow: Floats) -> float | None:
    """Return Spearman's coefficient of two rows of scores: Pearson's of their average ranks.

    None if it does not exist: fewer than two scores, all tied on one side, or a NaN.
    """
    if len(live) < 2 or np.isnan(live).any() or np.isnan(shadow).any():
        return None
    ours = _centred_ranks(live)
    theirs = _centred_ranks(shadow)
    scale = float(ours @ ours) * float(theirs @ theirs)
    if scale == 0.0:
        return None
    return max(-1.0, min(1.0, float(ours @ theirs) / sqrt(scale)))


def _centred_ranks(scores: Floats) -> Floats:
    """Return each score's rank minus the mean rank; tied scores share their mean rank."""
    ordered = np.sort(scores)
    below = ordered.searchsorted(scores, "left")
    upto = ordered.searchsorted(scores, "right")
    ranks: Floats = (below + upto - len(scores)) / 2.0
    return ranks


def _rank(difference: Difference, live: Floats, shadow: Floats) -> None:
    for ours, theirs in zip(live, shadow, strict=True):
        coefficient = rank_correlation(ours, theirs)
        if coefficient is not None:
            difference.rank_correlation_sum += coefficient
            difference.ranked += 1


def _scores(pairs: list[Pair]) -> Pair | None:
    for live, shadow in pairs:
        if not is_label(live.datatype) and live.inner == shadow.inner and prod(live.inner) >= 2:
            return live, shadow
    return None


def _block(answer: Answer, start: int, rows: int) -> NDArray[np.generic]:
    """Return `rows` rows from `start` on as rows of an array, cut at `ELEMENTS_MAX`."""
    data = answer.view(start, start + rows)
    if rows == 1:
        data = data[: ELEMENTS_MAX * answer.datatype.size]
    return as_array(answer.datatype, data).reshape(rows, -1)
