"""What can be told, and how it reads in a sentence. Pure.

The types are those of a webhook's `type`: dots between the parts, as Standard Webhooks asks.
"""

from __future__ import annotations

import math
from typing import Any

TEST = "test"
# In the order in which a page offers them. A rollout's moves are `rollout.` and the new phase.
EVENTS = {
    "rollout.started": "A rollout was started",
    "rollout.preparing": "A rollout loads and warms its target",
    "rollout.baking": "A step of a rollout began",
    "rollout.paused": "A rollout waits for a person",
    "rollout.promoting": "A rollout's target is being made stable",
    "rollout.succeeded": "A rollout succeeded",
    "rollout.rolling_back": "A rollout is being rolled back",
    "rollout.rolled_back": "A rollout was rolled back",
    "rollout.failed": "A rollout failed before any traffic moved",
    "rollout.held": "A rollout has been held for long",
    "leak.detected": "A version at 0 % got traffic",
    "split.diverged": "The observed split is not the configured one",
    "ends.missing": "Requests were assigned whose end nobody counted, or ended twice",
    "loop.stopped": "A loop of the control plane has stopped (to targets of all models)",
    "experiment.started": "An experiment was started",
    "experiment.paused": "An experiment was paused: everybody gets stable",
    "experiment.resumed": "A paused experiment assigns units again",
    "experiment.weights": "An experiment's weights were changed",
    "experiment.significant": "An experiment's primary metric is significant for the first time",
    "experiment.mismatch": "An experiment's shares of units do not match its weights",
    "experiment.completed": "An experiment ended: stopped, shipped or abandoned",
    "experiment.failed": "An experiment failed before it assigned anybody",
}
DEPTH_MAX = 12


def is_wanted(event: str, events: list[str]) -> bool:
    """Say whether a target that asked for `events` is told; an empty list asks for all."""
    return event == TEST or not events or event in events


def sentence(event: str, data: dict[str, Any]) -> str:
    """Return one readable line, e.g. `digits:4 baking at 5 %: evidence so far is good`."""
    named = data.get("target") or data.get("experiment") or data.get("model")
    subject = str(named or "Interlock")
    if event == TEST:
        return f"Test of notifications by {data.get('actor', 'Interlock')}: this one arrived."
    said = f"{subject}: {_what(event)}"
    weight_bp = data.get("weight_bp")
    if isinstance(weight_bp, int):
        said += f" at {weight_bp / 100:g} %"
    if reason := str(data.get("reason") or "").strip():
        said += f" ({reason})"
    return said


def _what(event: str) -> str:
    family, _, detail = event.partition(".")
    words = detail.replace("_", " ")
    return f"{family} {words}" if words else family


def plain(value: Any, depth: int = 0) -> Any:
    """Return `value` as JSON that PostgreSQL stores, whatever it was.

    What is told must never undo what it tells of: NaN and infinities become null, NUL characters
    are dropped, anything that JSON does not know becomes its text.
    """
    if depth > DEPTH_MAX:
        return None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_text(key): plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, depth + 1) for inner in value]
    return _text(value)


def _text(value: object) -> str:
    # Lone surrogates have no UTF-8 form, and PostgreSQL stores no NUL.
    return str(value).replace("\x00", "").encode("utf-8", "replace").decode()
