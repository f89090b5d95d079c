"""Prometheus metrics, rendered on request from plain counters that the hot path increments.

There are series for the models and versions of the routing table only: an unknown name in a request
creates none. A page can be sent to another process and merged there with other pages.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec

from dataplane.ends import ENDS

LATENCY_BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64)

Labels = tuple[tuple[str, str], ...]
Kind = Literal["counter", "gauge", "histogram"]
# How the values of a gauge of several processes are merged; counters and histograms are summed.
Merge = Literal["sum", "max", "min"]


class Histogram:
    """Counts per bucket; made cumulative when rendered."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        # Upper bounds of the buckets, in order; one more bucket holds the rest.
        self.bounds = bounds
        # Observations by bucket.
        self.counts = [0] * (len(bounds) + 1)
        # The sum of the observations.
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class VersionStats:
    """Counters of one version since the start of this process."""

    __slots__ = (
        "batch_size",
        "cache_hits",
        "cache_misses",
        "ends",
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
        # How requests that were assigned to this version ended, by the number of the end. Updated
        # when a window closes, so open windows are not included.
        self.ends = [0] * len(ENDS)
        # Requests that this version failed and stable answered instead, by reason.
        self.fallbacks: dict[str, int] = {}
        # Answers from the cache, by tier: l1, l2.
        self.cache_hits: dict[str, int] = {}
        # Cache misses.
        self.cache_misses = 0
        # How often the breaker opened.
        self.trips = 0

    def count(self, status: str) -> None:
        self.predictions[status] = self.predictions.get(status, 0) + 1

    def count_hit(self, tier: str) -> None:
        """Count an answer from the cache."""
        self.count("cached")
        self.cache_hits[tier] = self.cache_hits.get(tier, 0) + 1

    def count_miss(self) -> None:
        """Count a cache miss."""
        self.cache_misses += 1


class Family(msgspec.Struct, array_like=True):
    """One metric: its samples, and for a histogram bounds, counts and sums."""

    name: str
    kind: Kind
    text: str
    merge: Merge = "sum"
    samples: list[tuple[Labels, float]] = []
    histograms: list[tuple[Labels, tuple[float, ...], tuple[int, ...], float]] = []


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Family])


class Page:
    """The result of a scrape; samples of the same family are kept together."""

    def __init__(self, families: Iterable[Family] = ()) -> None:
        # The families in the order in which they were added.
        self._families = {family.name: family for family in families}

    def family(
        self,
        name: str,
        kind: Literal["counter", "gauge"],
        text: str,
        samples: Iterable[tuple[Labels, float]],
        merge: Merge = "sum",
    ) -> None:
        """Add samples of a counter or gauge."""
        self._family(name, kind, text, merge).samples.extend(samples)

    def histograms(self, name: str, text: str, samples: Iterable[tuple[Labels, Histogram]]) -> None:
        """Add samples of a histogram."""
        self._family(name, "histogram", text, "sum").histograms.extend(
            (labels, item.bounds, tuple(item.counts), item.sum) for labels, item in samples
        )

    def text(self) -> bytes:
        """Return the page in the Prometheus text format; families without samples are left out."""
        lines: list[str] = []
        for family in self._families.values():
            if family.samples or family.histograms:
                lines.append(f"# HELP {family.name} {family.text}")
                lines.append(f"# TYPE {family.name} {family.kind}")
                lines += _lines(family)
        return ("\n".join(lines) + "\n").encode()

    def encode(self) -> bytes:
        """Return the page in the format of `decode`."""
        return _encoder.encode(list(self._families.values()))

    @classmethod
    def decode(cls, data: bytes) -> Page:
        return cls(_decoder.decode(data))

    @classmethod
    def merged(cls, pages: Iterable[Page]) -> Page:
        by_name: dict[str, list[Family]] = {}
        for page in pages:
            for name, family in page._families.items():
                by_name.setdefault(name, []).append(family)
        return cls(_merged(families) for families in by_name.values())

    def totals(self) -> Page:
        """Return the counters and histograms, which outlive a process."""
        return Page(family for family in self._families.values() if family.kind != "gauge")

    def without(self, versions: set[tuple[str, str]]) -> Page:
        """Return the page without the samples of these (model, version)."""

        def stays(labels: Labels) -> bool:
            values = dict(labels)
            return (values.get("model_name"), values.get("model_version")) not in versions

        return Page(
            msgspec.structs.replace(
                family,
                samples=[item for item in family.samples if stays(item[0])],
                histograms=[item for item in family.histograms if stays(item[0])],
            )
            for family in self._families.values()
        )

    def _family(self, name: str, kind: Kind, text: str, merge: Merge) -> Family:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = Family(name, kind, text, merge)
        return family


_MERGES: dict[Merge, Callable[[float, float], float]] = {
    "sum": lambda a, b: a + b,
    "max": max,
    "min": min,
}


def _merged(families: list[Family]) -> Family:
    first = families[0]
    merge = _MERGES[first.merge]
    samples: dict[Labels, float] = {}
    histograms: dict[Labels, tuple[tuple[float, ...], tuple[int, ...], float]] = {}
    for family in families:
        for labels, value in family.samples:
            samples[labels] = merge(samples[labels], value) if labels in samples else value
        for labels, bounds, counts, total in family.histograms:
            known = histograms.get(labels)
            if known is None:
                histograms[labels] = (bounds, counts, total)
            else:
                both = tuple(map(int.__add__, counts, known[1]))
                histograms[labels] = (bounds, both, total + known[2])
    return msgspec.structs.replace(
        first,
        samples=list(samples.items()),
        histograms=[(labels, *item) for labels, item in histograms.items()],
    )


def _lines(family: Family) -> Iterator[str]:
    name = family.name
    for labels, value in family.samples:
        yield f"{name}{_labels(labels)} {_number(value)}"
    for labels, bounds, counts, total in family.histograms:
        observed = 0
        for bound, count in zip(bounds, counts, strict=False):
            observed += count
            yield f"{name}_bucket{_labels((*labels, ('le', _number(bound))))} {observed}"
        observed += counts[-1]
        yield f"{name}_bucket{_labels((*labels, ('le', '+Inf')))} {observed}"
        yield f"{name}_sum{_labels(labels)} {_number(total)}"
        yield f"{name}_count{_labels(labels)} {observed}"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
