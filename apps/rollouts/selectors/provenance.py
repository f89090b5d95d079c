"""Which rollout or experiment a change of what serves belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from apps.rollouts.models import Rollout, ServingChange


@dataclass(frozen=True)
class Decider:
    """`kind` is rollout or experiment; empty when a person or a setting changed it directly."""

    kind: str = ""
    id: str = ""


def decider_of(change: ServingChange) -> Decider:
    """Return what made the change."""
    made_by = Rollout.objects.filter(
        model__name=change.model_name, events__generation=change.generation
    ).first()
    if made_by is not None:
        return Decider("rollout", str(made_by.pk))
    if change.split and change.split["kind"] == "experiment":
        return Decider("experiment", change.split["id"])
    return Decider()
