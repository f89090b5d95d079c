"""Detects evidence that comes from a single data plane instance, such as a network fault there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from apps.rollouts.eprocess import BucketCounts

# With fewer instances, an instance's fault cannot be distinguished from the version's.
INSTANCES_MIN = 3


def dominant_source(intervals: Sequence[Mapping[str, BucketCounts]], margin: float) -> str:
    """Return the source (an instance or a cluster of units) that alone exceeds the margin.

    It is the source with the largest surplus of canary events over the control's rate; empty unless
    the estimate of all others is within the margin. They are compared interval by interval (Mantel
    and Haenszel 1959).
    """
    canary: Counter[str] = Counter()
    events: Counter[str] = Counter()
    control_n = control_events = 0
    for interval in intervals:
        for name, counts in interval.items():
            canary[name] += counts.canary_n
            events[name] += counts.canary_events
            control_n += counts.control_n
            control_events += counts.control_events
    exposed = [name for name, n in canary.items() if n]
    if len(exposed) < INSTANCES_MIN:
        return ""
    usual = control_events / max(1, control_n)
    candidate = max(exposed, key=lambda name: events[name] - usual * canary[name])
    return "" if _difference(intervals, candidate) > margin else candidate


def _difference(intervals: Sequence[Mapping[str, BucketCounts]], without: str) -> float:
    weight = surplus = 0.0
    for interval in intervals:
        rest = [counts for name, counts in interval.items() if name != without]
        n1, n0 = sum(each.canary_n for each in rest), sum(each.control_n for each in rest)
        if n1 and n0:
            a, b = (sum(each.canary_events for each in rest), sum(e.control_events for e in rest))
            weight += n1 * n0 / (n1 + n0)
            surplus += (a * n0 - b * n1) / (n1 + n0)
    return surplus / weight if weight else 0.0
