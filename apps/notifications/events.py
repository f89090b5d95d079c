"""Event types of notifications and their one-line summaries. Pure.

A type is the `type` of a webhook: words joined by dots, as Standard Webhooks specifies.
"""

from __future__ import annotations

import math
from typing import Any

TEST = "test"
# In the order of the form. A phase change of a rollout is `rollout.` and the new phase.
EVENTS = {
    "rollout.started": "A rollout was started",
    "rollout.preparing": "A rollout loads and warms its target",
    "rollout.baking": "A step of a rollout started",
    "rollout.paused": "A rollout was paused and waits for a decision",
    "rollout.promoting": "A rollout's target is being made stable",
    "rollout.succeeded": "A rollout succeeded",
    "rollout.rolling_back": "A rollout is being rolled back",
    "rollout.rolled_back": "A rollout was rolled back",
    "rollout.failed": "A rollout failed before any traffic moved",
    "rollout.held": "A rollout has been on hold for a long time",
    "leak.detected": "A version at 0 % received traffic",
    "split.diverged": "The observed split is not the configured one",
    "ends.missing": "Assigned requests without a counted end, or with more than one",
    "loop.stopped": "A loop of the control plane stopped (only for targets of all models)",
    "experiment.started": "An experiment was started",
    "experiment.paused": "An experiment was paused; all units get stable",
    "experiment.resumed": "A paused experiment was resumed",
    "experiment.weights": "An experiment's weights were changed",
    "experiment.significant": "An experiment's primary metric is significant for the first time",
    "experiment.mismatch": "An experiment has a sample ratio mismatch",
    "experiment.completed": "An experiment ended: stopped, shipped or abandoned",
    "experiment.failed": "An experiment failed before it assigned any unit",
}
DEPTH_MAX = 12


def is_subscribed(event: str, events: list[str]) -> bool:
    """Return whether a target with these `events` receives `event`; an empty list means all."""
    return event == TEST or not events or event in events


def summarize_event(event: str, data: dict[str, Any]) -> str:
    """Return a one-line summary, e.g. `digits:4: rollout baking at 5 % (all checks pass)`."""
    subject = data.get("target") or data.get("experiment") or data.get("model") or "Interlock"
    if event == TEST:
        return f"Test notification from {data.get('actor', 'Interlock')}: it arrived."
    summary = f"{subject}: {_event_words(event)}"
    weight_bp = data.get("weight_bp")
    if isinstance(weight_bp, int):
        summary += f" at {weight_bp / 100:g} %"
    if reason := str(data.get("reason") or "").strip():
        summary += f" ({reason})"
    return summary


def _event_words(event: str) -> str:
    family, _, detail = event.partition(".")
    words = detail.replace("_", " ")
    return f"{family} {words}" if words else family


def to_storable(value: Any, depth: int = 0) -> Any:
    """Convert any value to JSON that PostgreSQL stores.

    A payload must never fail the transaction of its event: NaN and infinities become null, NUL
    characters are removed, and values that JSON cannot represent become text.
    """
    if depth > DEPTH_MAX:
        return None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_text(key): to_storable(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_storable(inner, depth + 1) for inner in value]
    return _text(value)


def _text(value: object) -> str:
    # Lone surrogates have no UTF-8 form, and PostgreSQL stores no NUL.
    return str(value).replace("\x00", "").encode("utf-8", "replace").decode()
