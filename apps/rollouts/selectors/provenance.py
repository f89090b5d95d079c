"""Finds the rollout or experiment that made a serving change."""

from __future__ import annotations

from dataclasses import dataclass

from apps.rollouts.models import Rollout, ServingChange


@dataclass(frozen=True)
class Decider:
    """`kind` is rollout or experiment; empty for a direct change by a person or a setting."""

    kind: str = ""
    id: str = ""


def decider_of(change: ServingChange) -> Decider:
    rollout = Rollout.objects.filter(
        model__name=change.model_name, events__generation=change.generation
    ).first()
    if rollout is not None:
        return Decider("rollout", str(rollout.pk))
    if change.split and change.split["kind"] == "experiment":
        return Decider("experiment", change.split["id"])
    return Decider()
