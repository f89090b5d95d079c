"""Refused outcomes: checks against the metrics of the applied table, and counts for operators.

A client gets a response item by item; operators see the counts on `/metrics` at once, and on the
control plane's pages through the stream of outcomes.
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

# Keys that are counted separately between two messages; further metrics are counted together.
KEYS_MAX = 200
# Known metrics that an error for an unknown metric names.
NAMED_MAX = 20
# If the control plane has not confirmed the table for this long, a metric may have been defined
# since: outcomes of unknown metrics are accepted then, and the control plane decides.
TRUSTED_S = 30.0

# (metric, reason, tenant)
Key = tuple[str, str, str]


def without_refused(outcomes: Outcomes, rules: Mapping[str, MetricRule]) -> Outcomes:
    """Return the outcomes that `rules` allow, with the others added to `refused`."""
    refused_before = {entry["index"] for entry in outcomes.refused}
    indexes = (i for i in range(len(outcomes) + len(refused_before)) if i not in refused_before)
    accepted: list[Outcome] = []
    refused: list[dict[str, object]] = []
    advice = ""
    for index, outcome in zip(indexes, outcomes, strict=True):
        rule = rules.get(outcome.metric)
        reason = UNKNOWN_METRIC if rule is None else rule.refusal_reason(outcome.value)
        if not reason:
            accepted.append(outcome)
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
    return Outcomes(accepted, sorted([*outcomes.refused, *refused], key=_index))


def _index(entry: dict[str, object]) -> int:
    return int(str(entry["index"]))


def _advice(name: str, rules: Mapping[str, MetricRule]) -> str:
    """Return the known metrics, to add to the first error for an unknown metric."""
    names = [each for each, rule in rules.items() if not rule.refusal]
    shown = ", ".join(nearest(name, names, NAMED_MAX)) or "none"
    more = f" and others, {len(names)} in total" if len(names) > NAMED_MAX else ""
    return f"; known metrics are {shown}{more}; a new metric is known within seconds"


class Refusals:
    """Counts of refused outcomes; bounded, whatever names clients send."""

    def __init__(self) -> None:
        # Counts since the last `drain`.
        self._counts: dict[Key, int] = {}
        # Counts since the start, for `/metrics`: by (known metric or empty, reason, tenant).
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
        """Return the counts since the last call."""
        counts, self._counts = self._counts, {}
        return tuple(
            OutcomeRefusals(metric=metric, reason=reason, tenant=tenant, count=count)
            for (metric, reason, tenant), count in counts.items()
        )
