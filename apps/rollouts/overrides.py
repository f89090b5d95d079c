"""What keeps a rollout from starting, and a person may override, saying so."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from django.db import models

from apps.lib.errors import Conflict, Invalid
from apps.models.models import ModelVersion, RegisteredModel
from apps.rollouts.freezes import frozen_by
from apps.rollouts.models import Quarantine


class Override(models.TextChoices):
    # The target was rolled back before.
    QUARANTINE = "quarantine"
    # The target takes or gives other tensors than stable.
    SIGNATURE = "signature"
    # A freeze window is open.
    FREEZE = "freeze"


def read_overrides(names: Collection[str]) -> list[str]:
    """Return the overrides in their order. Raises Invalid for one that does not exist."""
    unknown = sorted(set(names) - set(Override.values))
    if unknown:
        known = ", ".join(Override.values)
        raise Invalid(f"unknown override {unknown[0]!r}. Known are: {known}")
    return [name for name in Override.values if name in names]


def needed_overrides(
    asked: Sequence[str], model: RegisteredModel, target: ModelVersion
) -> list[str]:
    """Return those of `asked` that override something; a freeze may also begin later."""
    needed = {Override.FREEZE.value}
    if Quarantine.objects.filter(version=target).exists():
        needed.add(Override.QUARANTINE.value)
    if model.stable is not None and signature_difference(model.stable, target):
        needed.add(Override.SIGNATURE.value)
    return [name for name in asked if name in needed]


def require_not_quarantined(target: ModelVersion, overrides: Sequence[str]) -> None:
    """Raise Conflict for a version that was rolled back, unless that is overridden."""
    held = Quarantine.objects.filter(version=target).first()
    if held is not None and Override.QUARANTINE not in overrides:
        raise Conflict(
            f"{target} is in quarantine since {held.at:%Y-%m-%d %H:%M} UTC: it was rolled back "
            f"({held.reason}). Override {Override.QUARANTINE.value!r} to try it again",
            override=Override.QUARANTINE.value,
        )


def require_not_frozen(model: RegisteredModel, overrides: Sequence[str], now: datetime) -> None:
    """Raise Conflict while a freeze window is open, unless that is overridden."""
    window = frozen_by(model, now)
    if window is not None and Override.FREEZE not in overrides:
        raise Conflict(
            f"{model.name} is frozen until {window.until:%Y-%m-%d %H:%M} UTC: {window.reason}. "
            f"Override {Override.FREEZE.value!r} when starting, to go on nevertheless",
            override=Override.FREEZE.value,
        )


def require_signature(
    stable: ModelVersion, target: ModelVersion, overrides: Sequence[str]
) -> list[str]:
    """Return how the signatures differ. Raises Invalid when they do and that is not overridden."""
    difference = signature_difference(stable, target)
    if difference and Override.SIGNATURE not in overrides:
        raise Invalid(
            f"{target} does not fit the requests that {stable} gets: {difference[0]}. "
            f"Override {Override.SIGNATURE.value!r} to switch to it at once, without steps: the "
            "two cannot share traffic",
            difference=difference,
            override=Override.SIGNATURE.value,
        )
    return difference


def signature_difference(stable: ModelVersion, target: ModelVersion) -> list[str]:
    """Return in words how the signatures differ; an empty list when they are the same."""
    found = []
    for side in ("inputs", "outputs"):
        old = {item["name"]: item for item in stable.signature[side]}
        new = {item["name"]: item for item in target.signature[side]}
        found += [f"{side[:-1]} {name!r} is missing" for name in old if name not in new]
        found += [f"{side[:-1]} {name!r} is new" for name in new if name not in old]
        for name in old.keys() & new.keys():
            before, after = (f"{t['datatype']} {t['shape']}" for t in (old[name], new[name]))
            if before != after:
                found.append(f"{side[:-1]} {name!r} was {before} and is {after}")
    if stable.batched != target.batched:
        found.append("one of them has a batch dimension and the other has none")
    return sorted(found)
