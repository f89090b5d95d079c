"""Obstacles of a rollout that a person may override, with the consequence of the override."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from apps.models.models import ModelVersion, RegisteredModel
from apps.rollouts.freezes import frozen_by
from apps.rollouts.models import Quarantine
from apps.rollouts.overrides import Override, signature_difference


@dataclass(frozen=True)
class Obstacle:
    """`override` is the value that overrides it; `lines` are details of the summary."""

    override: str
    summary: str
    consequence: str
    lines: tuple[str, ...] = ()


def obstacles_of(model: RegisteredModel, target: ModelVersion, now: datetime) -> list[Obstacle]:
    """Return what a start of `target` must override now."""
    obstacles = [_quarantine(target), _signature(model, target), _freeze(model, now)]
    return [obstacle for obstacle in obstacles if obstacle is not None]


def _quarantine(target: ModelVersion) -> Obstacle | None:
    held = Quarantine.objects.filter(version=target).first()
    if held is None:
        return None
    return Obstacle(
        Override.QUARANTINE.value,
        f"{target} is in quarantine since {held.at:%-d %b %Y %H:%M} UTC: it was rolled back, "
        f"because {held.reason}",
        "Start it again: the checks start from scratch and may roll it back again.",
    )


def _signature(model: RegisteredModel, target: ModelVersion) -> Obstacle | None:
    difference = signature_difference(model.stable, target) if model.stable else []
    if not difference:
        return None
    return Obstacle(
        Override.SIGNATURE.value,
        f"the signature of {target} differs from stable {model.stable}",
        "Switch at once: the two cannot share traffic, so all of it moves when the version is "
        "warm, without steps and checks. Requests that fit only the current version then fail.",
        tuple(difference),
    )


def _freeze(model: RegisteredModel, now: datetime) -> Obstacle | None:
    window = frozen_by(model, now)
    if window is None:
        return None
    return Obstacle(
        Override.FREEZE.value,
        f"{model.name} is frozen until {window.until:%-d %b %Y %H:%M} UTC: {window.reason}",
        "Start anyway: the freeze does not hold this rollout.",
    )
