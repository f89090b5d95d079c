"""How fast one version answers batches, and so when a request that joins the queue would be done.

Averages are exponentially weighted. With all places in flight taken, one batch ends every
`batch_s / places` seconds (Little's law), however the model server shares its time among them. A
cold or a stale average says nothing: everybody may join.
"""

from __future__ import annotations

# Batches that must have been seen, and how long ago the last, before the averages count.
SAMPLES_MIN = 8
STALE_S = 5.0
_ALPHA = 0.2


class Pace:
    """The averages; times are seconds on any monotonic clock, passed in by the caller."""

    __slots__ = ("_mean_s", "_places", "_rows", "_samples", "_seen_at", "batch_s", "row_s")

    def __init__(self, rows_max: int, places: int) -> None:
        # Batches that may be under way at once.
        self._places = places
        # The average time from a batch's departure to its answer.
        self._mean_s = 0.0
        # The average size of batches that were as large as they could be.
        self._rows = float(rows_max)
        # Batches seen, up to those that it takes to be warm.
        self._samples = 0
        # When the last one was answered.
        self._seen_at = 0.0
        # What a request costs at least: no less than it takes with the places taken; nought
        # while cold.
        self.batch_s = 0.0
        # What each row ahead of it costs; nought while cold.
        self.row_s = 0.0

    def answered(self, rows: int, took_s: float, now: float, *, pressed: bool) -> None:
        """Learn from a batch; `pressed` says that it was as large as it could be."""
        self._seen_at = now
        if self._samples < SAMPLES_MIN:
            self._samples += 1
            self._mean_s += (took_s - self._mean_s) / self._samples
        else:
            self._mean_s += _ALPHA * (took_s - self._mean_s)
        if pressed:
            self._rows += _ALPHA * (rows - self._rows)
        if self._samples == SAMPLES_MIN:
            turn_s = self._mean_s / self._places
            self.batch_s = self._mean_s + turn_s
            self.row_s = turn_s / self._rows

    def done_in_s(self, rows_ahead: float, places_free: int, now: float) -> float:
        """Return in how many seconds a request behind so many rows would be answered."""
        if self._samples < SAMPLES_MIN or now - self._seen_at > STALE_S:
            return 0.0
        turns = int(rows_ahead / self._rows) - places_free + 1
        return self._mean_s + max(0, turns) * self._mean_s / self._places

    def drained_in_s(self, rows: int) -> float:
        """Return in how many seconds `rows` waiting rows will have left."""
        return rows * self.row_s
