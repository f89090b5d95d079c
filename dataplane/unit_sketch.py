"""Sketches of the units of a model: the smallest hashes of an hour estimate their number.

A request costs one hash and one comparison; the sketch of a model with many units hardly changes
any more, and takes eight bytes per value.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable

from xxhash import xxh3_64_intdigest

from contract.messages import SKETCH_K, UnitSketch

HASHES = 2**64
REPORT_EVERY_S = 60.0
MODELS_MAX = 20_000


class Sketch:
    """The units of one model in the present hour."""

    __slots__ = ("_bound", "_smallest", "changed")

    def __init__(self) -> None:
        # The smallest hashes, ascending and distinct.
        self._smallest = array("Q")
        # Only smaller hashes belong in the sketch.
        self._bound = HASHES
        # Whether it changed since the last `take`.
        self.changed = False

    def add(self, unit: str) -> None:
        """Count `unit`, once."""
        digest = xxh3_64_intdigest(unit.encode())
        if digest < self._bound:
            self._keep(digest)

    def _keep(self, digest: int) -> None:
        smallest = self._smallest
        place = bisect_left(smallest, digest)
        if place < len(smallest) and smallest[place] == digest:
            return
        smallest.insert(place, digest)
        if len(smallest) > SKETCH_K:
            smallest.pop()
        if len(smallest) == SKETCH_K:
            self._bound = smallest[-1]
        self.changed = True

    def take(self) -> tuple[int, ...]:
        """Return the present values."""
        self.changed = False
        return tuple(self._smallest)

    def clear(self) -> None:
        """Start another hour."""
        self._smallest = array("Q")
        self._bound = HASHES
        self.changed = False


class Sketches:
    """The sketches of all models with requests."""

    def __init__(self, clock: Callable[[], float]) -> None:
        # Unix seconds.
        self._clock = clock
        # Sketches by model.
        self._sketches: dict[str, Sketch] = {}
        # The hour of the sketches, since 1970.
        self._hour = int(clock()) // 3_600
        # When sketches were last drained.
        self._reported_at = clock()

    def of(self, model: str) -> Sketch:
        """Return the sketch of `model`; beyond the limit it is one that is never drained."""
        sketch = self._sketches.get(model)
        if sketch is None:
            sketch = Sketch()
            if len(self._sketches) < MODELS_MAX:
                self._sketches[model] = sketch
        return sketch

    def drain(self, *, is_last: bool = False) -> list[UnitSketch]:
        """Return the changed sketches, if they are due, the hour is over, or `is_last`."""
        now = self._clock()
        hour = int(now) // 3_600
        is_over = hour != self._hour
        if not (is_over or is_last or now - self._reported_at >= REPORT_EVERY_S):
            return []
        self._reported_at = now
        sketches = [
            UnitSketch(model=model, hour=self._hour, smallest=sketch.take())
            for model, sketch in self._sketches.items()
            if sketch.changed
        ]
        if is_over:
            self._hour = hour
            for sketch in self._sketches.values():
                sketch.clear()
        return sketches
