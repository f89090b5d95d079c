"""Why an outcome is refused, in the words of both planes, and how many were.

Reasons are few and fixed, so that they can be counted; what a single outcome said is never in one.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

UNKNOWN_METRIC = "unknown metric"
NO_PROPORTION = "value of a proportion is neither 0 nor 1"
IN_THE_FUTURE = "occurred_at is more than an hour in the future"
TOO_OLD = "occurred_at is more than a year ago"
LEAP_SECOND = "occurred_at is a leap second"
OTHERS_REQUEST = "request_id is none that a request of this sender returned"
OTHER_MODEL = "request_id is of a model that the sender's key does not open"
# Of these the control plane keeps the outcome: exposures may come later than outcomes.
OTHERS_UNIT = "unit_id is of requests of others; it counts once this sender asks about it"
MALFORMED = "not an outcome: a field is missing, unknown or of another type"
# What names from outside are counted under once too many differ.
OTHER_METRICS = "(other)"


class OutcomeRefusals(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many outcomes an instance refused for one reason since its last message.

    `metric` is the name as it came, cut to 100 characters, or `OTHER_METRICS`; `tenant` is empty
    for nobody's outcomes.
    """

    metric: str
    reason: str
    count: int
    tenant: str = ""


class MetricRule(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What outcomes may say of a metric.

    With `is_binary` the value is 0 or 1. A `refusal` says why no outcome is sent under this name.
    """

    is_binary: bool = False
    refusal: str = ""

    def why_not(self, value: float) -> str:
        """Return why an outcome of `value` is refused, or nothing."""
        if self.refusal:
            return self.refusal
        return NO_PROPORTION if self.is_binary and value not in (0.0, 1.0) else ""


def nearest(name: str, names: Iterable[str], count: int) -> list[str]:
    """Return up to `count` of `names`: those beside `name` in the order of the alphabet."""
    ordered = sorted({*names, name})
    place = ordered.index(name)
    start = max(0, min(place - count // 2, len(ordered) - count - 1))
    return [each for each in ordered[start : start + count + 1] if each != name]
