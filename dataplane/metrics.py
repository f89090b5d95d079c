"""Prometheus text, rendered when it is asked for from plain counters that the hot path bumps.

Series exist for the models and versions of the routing table only: an unknown name in a request
creates none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

LATENCY_BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64)

Labels = tuple[tuple[str, str], ...]


class Histogram:
    """Counts per bucket; made cumulative when rendered."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        # Upper bounds of the buckets, in order; one more bucket holds the rest.
        self.bounds = bounds
        # Observations by bucket.
        self.counts = [0] * (len(bounds) + 1)
        # The sum of what was observed.
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class VersionStats:
    """What one version did since the start of this process."""

    __slots__ = (
        "batch_size",
        "cache_hits",
        "cache_misses",
        "fallbacks",
        "latency",
        "predictions",
        "trips",
    )

    def __init__(self) -> None:
        # Seconds from the arrival of a request to its answer.
        self.latency = Histogram(LATENCY_BOUNDS_S)
        # Rows of each batch.
        self.batch_size = Histogram(BATCH_BOUNDS)
        # Requests by status: success, cached, fallback, error, invalid, rejected.
        self.predictions: dict[str, int] = {}
        # Requests that this version failed and stable was asked to answer, by reason.
        self.fallbacks: dict[str, int] = {}
        # Answers from the cache, by tier: l1, l2.
        self.cache_hits: dict[str, int] = {}
        # Requests that the cache had no answer for.
        self.cache_misses = 0
        # How often the breaker opened.
        self.trips = 0

    def count(self, status: str) -> None:
        self.predictions[status] = self.predictions.get(status, 0) + 1

    def found(self, tier: str) -> None:
        """Count an answer from the cache."""
        self.count("cached")
        self.cache_hits[tier] = self.cache_hits.get(tier, 0) + 1

    def missed(self) -> None:
        """Count a request that the cache had no answer for."""
        self.cache_misses += 1


class Page:
    """Builds the text of a scrape; a family's samples are added together."""

    def __init__(self) -> None:
        # The text so far.
        self._lines: list[str] = []

    def family(
        self, name: str, kind: str, text: str, samples: Iterable[tuple[Labels, float]]
    ) -> None:
        """Add a counter or gauge with its samples, if there are any."""
        lines = [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples]
        if lines:
            self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *lines]

    def histograms(self, name: str, text: str, samples: Iterable[tuple[Labels, Histogram]]) -> None:
        """Add a histogram family."""
        lines = [line for labels, item in samples for line in _histogram(name, labels, item)]
        if lines:
            self._lines += [f"# HELP {name} {text}", f"# TYPE {name} histogram", *lines]

    def text(self) -> bytes:
        return ("\n".join(self._lines) + "\n").encode()


def _histogram(name: str, labels: Labels, item: Histogram) -> Iterator[str]:
    total = 0
    for bound, count in zip(item.bounds, item.counts, strict=False):
        total += count
        yield f"{name}_bucket{_labels((*labels, ('le', _number(bound))))} {total}"
    total += item.counts[-1]
    yield f"{name}_bucket{_labels((*labels, ('le', '+Inf')))} {total}"
    yield f"{name}_sum{_labels(labels)} {_number(item.sum)}"
    yield f"{name}_count{_labels(labels)} {total}"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
