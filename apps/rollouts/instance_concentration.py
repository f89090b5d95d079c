"""Does evidence rest on one instance of the data plane? Its network is no version's fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from apps.rollouts.eprocess import BucketCounts

# With fewer nobody can say whether it is the instance or the version.
INSTANCES_MIN = 3


def rests_on(intervals: Sequence[Mapping[str, BucketCounts]], margin: float) -> str:
    """Return the instance without which the others' estimate is within the margin, or nothing.

    It is the one with most events of the canary beyond what control's rate expects. The others are
    compared interval by interval (Mantel and Haenszel 1959).
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
    seen = [name for name, n in canary.items() if n]
    if len(seen) < INSTANCES_MIN:
        return ""
    usual = control_events / max(1, control_n)
    loudest = max(seen, key=lambda name: events[name] - usual * canary[name])
    return "" if _difference(intervals, loudest) > margin else loudest


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
