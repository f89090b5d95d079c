"""The reasons for which both planes refuse outcomes, and the counts of refused outcomes.

Reasons are few and fixed, so that they can be counted; they never contain text of an outcome.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

UNKNOWN_METRIC = "unknown metric"
NO_PROPORTION = "value of a proportion is neither 0 nor 1"
IN_THE_FUTURE = "occurred_at is more than an hour in the future"
TOO_OLD = "occurred_at is more than a year ago"
LEAP_SECOND = "occurred_at is a leap second"
OTHERS_REQUEST = "request_id was not returned to this sender"
OTHER_MODEL = "request_id is of a model that the sender's API key does not allow"
# With this reason the control plane keeps the outcome: exposures may arrive after outcomes.
OTHERS_UNIT = "unit_id is of other senders' requests; it counts once this sender sends one for it"
MALFORMED = "not an outcome: a field is missing, unknown or of another type"
# The metric that outcomes count under once there are too many different names.
OTHER_METRICS = "(other)"


class OutcomeRefusals(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The number of outcomes an instance refused for one reason since its last message.

    `metric` is the name as it was sent, cut to 100 characters, or `OTHER_METRICS`; `tenant` is
    empty for an anonymous client.
    """

    metric: str
    reason: str
    count: int
    tenant: str = ""


class MetricRule(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the outcomes of a metric must satisfy.

    With `is_binary` the value must be 0 or 1. A `refusal` is the reason why this metric takes no
    outcomes at all.
    """

    is_binary: bool = False
    refusal: str = ""

    def refusal_reason(self, value: float) -> str:
        """Return why an outcome of `value` is refused, or an empty string."""
        if self.refusal:
            return self.refusal
        return NO_PROPORTION if self.is_binary and value not in (0.0, 1.0) else ""


def nearest(name: str, names: Iterable[str], count: int) -> list[str]:
    """Return up to `count` of `names`: the neighbours of `name` in alphabetical order."""
    ordered = sorted({*names, name})
    place = ordered.index(name)
    start = max(0, min(place - count // 2, len(ordered) - count - 1))
    return [each for each in ordered[start : start + count + 1] if each != name]
