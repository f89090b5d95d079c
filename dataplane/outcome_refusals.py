"""Refused outcomes: which the applied table refuses, and how many there were, for who operates.

A client is answered item by item; the operator learns of it from here: `/metrics` at once, and the
control plane's pages by the stream of outcomes.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from contract.messages import Outcome
from contract.refusals import (
    OTHER_METRICS,
    UNKNOWN_METRIC,
    MetricRule,
    OutcomeRefusals,
    nearest,
)
from dataplane.outcomes import METRIC_LENGTH_MAX, Outcomes

# What is counted apart between two messages; beyond it metrics are counted together.
KEYS_MAX = 200
# Of the metrics that there are, so many are named to a client who sent another.
NAMED_MAX = 20
# Where the control plane has not confirmed the table for so long, a metric may have been defined
# since: what is unknown is taken then, and the control plane judges it.
TRUSTED_S = 30.0

# (metric, reason, tenant)
Key = tuple[str, str, str]


def without_refused(outcomes: Outcomes, rules: Mapping[str, MetricRule]) -> Outcomes:
    """Return the outcomes that `rules` allow; the others join those that are refused alone."""
    gone = {entry["index"] for entry in outcomes.refused}
    places = (place for place in range(len(outcomes) + len(gone)) if place not in gone)
    taken: list[Outcome] = []
    refused: list[dict[str, object]] = []
    advice = ""
    for index, outcome in zip(places, outcomes, strict=True):
        rule = rules.get(outcome.metric)
        reason = UNKNOWN_METRIC if rule is None else rule.refusal_reason(outcome.value)
        if not reason:
            taken.append(outcome)
            continue
        if rule is None and not advice:
            advice = _advice(outcome.metric, rules)
        refused.append(
            {
                "index": index,
                "event_id": outcome.event_id,
                "metric": outcome.metric,
                "reason": reason,
                "error": f"metric {outcome.metric!r}: {reason}{advice if rule is None else ''}",
            }
        )
    if not refused:
        return outcomes
    return Outcomes(taken, sorted([*outcomes.refused, *refused], key=_index))


def _index(entry: dict[str, object]) -> int:
    return int(str(entry["index"]))


def _advice(name: str, rules: Mapping[str, MetricRule]) -> str:
    """Return what metrics there are, to follow the first unknown name of a request."""
    names = [each for each, rule in rules.items() if not rule.refusal]
    shown = ", ".join(nearest(name, names, NAMED_MAX)) or "none"
    more = f" and others, {len(names)} in all" if len(names) > NAMED_MAX else ""
    return f"; there are {shown}{more}; one that was just defined is known in seconds"


class Refusals:
    """Counts of refused outcomes; bounded, whatever names a client makes up."""

    def __init__(self) -> None:
        # Since the last `drain`.
        self._counts: dict[Key, int] = {}
        # Since the start, for `/metrics`: by (metric of the table or nothing, reason, tenant).
        self.totals: dict[Key, int] = {}

    def count(
        self, entries: Sequence[Mapping[str, object]], tenant: str, known: Container[str]
    ) -> None:
        """Count the refused `entries` of one request of `tenant`; `known` are the metrics."""
        for entry in entries:
            metric = str(entry.get("metric", ""))[:METRIC_LENGTH_MAX]
            reason = str(entry.get("reason", ""))
            shown = (metric if metric in known else "", reason, tenant)
            self.totals[shown] = self.totals.get(shown, 0) + 1
            key = (metric, reason, tenant)
            if key not in self._counts and len(self._counts) >= KEYS_MAX:
                key = (OTHER_METRICS, reason, tenant)
            self._counts[key] = self._counts.get(key, 0) + 1

    def drain(self) -> tuple[OutcomeRefusals, ...]:
        """Return what was counted since the last call."""
        counts, self._counts = self._counts, {}
        return tuple(
            OutcomeRefusals(metric=metric, reason=reason, tenant=tenant, count=count)
            for (metric, reason, tenant), count in counts.items()
        )
