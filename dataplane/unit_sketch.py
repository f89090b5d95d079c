"""Which units ask a model, as a sketch: the smallest hashes of the hour say how many there are.

A request costs one hash and one comparison; a sketch of a model that has many units hardly changes
any more, and takes eight bytes a value.
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


class Crowd:
    """The units of one model in the present hour."""

    __slots__ = ("_bound", "_smallest", "changed")

    def __init__(self) -> None:
        # Ascending, all different.
        self._smallest = array("Q")
        # No hash from here on belongs into the sketch.
        self._bound = HASHES
        # Whether it has changed since it was last taken.
        self.changed = False

    def saw(self, unit: str) -> None:
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
        """Return the sketch as it stands."""
        self.changed = False
        return tuple(self._smallest)

    def clear(self) -> None:
        """Begin another hour."""
        self._smallest = array("Q")
        self._bound = HASHES
        self.changed = False


class Crowds:
    """The crowds of all models that were asked for."""

    def __init__(self, clock: Callable[[], float]) -> None:
        # Unix seconds.
        self._clock = clock
        # By name of the model.
        self._crowds: dict[str, Crowd] = {}
        # Hours since 1970, of what the crowds hold.
        self._hour = int(clock()) // 3_600
        # When sketches were last handed over.
        self._reported_at = clock()

    def of(self, model: str) -> Crowd:
        """Return the crowd of `model`; beyond the bound it is one that nobody asks for."""
        crowd = self._crowds.get(model)
        if crowd is None:
            crowd = Crowd()
            if len(self._crowds) < MODELS_MAX:
                self._crowds[model] = crowd
        return crowd

    def drain(self, *, is_last: bool = False) -> list[UnitSketch]:
        """Return the sketches that changed, if it is time, an hour is over, or it `is_last`."""
        now = self._clock()
        hour = int(now) // 3_600
        is_over = hour != self._hour
        if not (is_over or is_last or now - self._reported_at >= REPORT_EVERY_S):
            return []
        self._reported_at = now
        sketches = [
            UnitSketch(model=model, hour=self._hour, smallest=crowd.take())
            for model, crowd in self._crowds.items()
            if crowd.changed
        ]
        if is_over:
            self._hour = hour
            for crowd in self._crowds.values():
                crowd.clear()
        return sketches
