"""The serving history of a model for its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apps.models.templatetags.interlock import share
from apps.rollouts.models import RolloutEvent, ServingChange
from contract.bucketing import BUCKETS


@dataclass(frozen=True)
class ServedView:
    """How a model was served after a change; `parts` are the versions with their shares."""

    change: ServingChange
    parts: list[str]
    # The id of the rollout that made the change, or empty.
    rollout: str = ""


def view_of(change: ServingChange, rollout: str = "") -> ServedView:
    return ServedView(change, _parts(change), rollout)


def views_of(changes: Sequence[ServingChange]) -> list[ServedView]:
    """Return the changes of one model with the rollouts that made them, in one query."""
    if not changes:
        return []
    events = RolloutEvent.objects.filter(
        rollout__model__name=changes[0].model_name,
        generation__in=[change.generation for change in changes],
    )
    rollout_ids = dict(events.order_by("-id").values_list("generation", "rollout"))
    return [view_of(change, str(rollout_ids.get(change.generation, ""))) for change in changes]


def _parts(change: ServingChange) -> list[str]:
    parts = [f"stable {change.stable}"] if change.stable else ["no stable version"]
    if change.split:
        parts += _split_parts(change.split)
    if change.shadow:
        copied = share(change.shadow["share_bp"])
        parts.append(f"shadow of {copied} to version {change.shadow['version']}")
    return parts


def _split_parts(split: Mapping[str, Any]) -> list[str]:
    if split["kind"] == "canary":
        return [f"canary {split['version']} at {share(split['weight_bp'])}"]
    coverage_bp = split.get("coverage_bp", BUCKETS)
    return [
        f"{variant['name']} {variant['version']} "
        f"at {share(variant['weight_bp'] * coverage_bp // BUCKETS)}"
        for variant in split.get("variants", ())
    ]
