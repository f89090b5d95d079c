"""Rules that block a rollout and that a person may override: quarantine, signature, freeze."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from django.db import models

from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Forbidden, Invalid
from apps.models.access import RANK, actor_has_role
from apps.models.models import ModelVersion, RegisteredModel, Role
from apps.rollouts.freeze_store import role_to_freeze
from apps.rollouts.freezes import Freeze, open_freezes
from apps.rollouts.models import Quarantine, Rollout
from apps.rollouts.states import Phase

# In these phases a freeze holds a rollout.
HELD_PHASES = {Phase.PENDING, Phase.PREPARING, Phase.BAKING, Phase.PAUSED}


class Override(models.TextChoices):
    # The target was rolled back before.
    QUARANTINE = "quarantine"
    # The inputs or outputs of the target differ from stable.
    SIGNATURE = "signature"
    # A freeze window is open.
    FREEZE = "freeze"
    # The gate of a step is closed; given with an action and a reason.
    GATE = "gate"


def read_overrides(names: Collection[str]) -> list[str]:
    """Return the overrides in canonical order. Raises Invalid for an unknown one."""
    unknown = sorted(set(names) - set(Override.values))
    if unknown:
        known = ", ".join(Override.values)
        raise Invalid(f"unknown override {unknown[0]!r}; expected one of {known}")
    return [name for name in Override.values if name in names]


def needed_overrides(
    requested: Sequence[str], model: RegisteredModel, target: ModelVersion
) -> list[str]:
    """Return the requested overrides that have an effect; a freeze may also begin later."""
    needed = {Override.FREEZE.value}
    if Quarantine.objects.filter(version=target).exists():
        needed.add(Override.QUARANTINE.value)
    if model.stable is not None and signature_difference(model.stable, target):
        needed.add(Override.SIGNATURE.value)
    return [name for name in requested if name in needed]


def require_not_quarantined(target: ModelVersion, overrides: Sequence[str]) -> None:
    """Raise Conflict for a version in quarantine, unless that is overridden."""
    held = Quarantine.objects.filter(version=target).first()
    if held is not None and Override.QUARANTINE not in overrides:
        raise Conflict(
            f"{target} is in quarantine since {held.at:%Y-%m-%d %H:%M} UTC: it was rolled back "
            f"({held.reason}). Override {Override.QUARANTINE.value!r} to start it again",
            override=Override.QUARANTINE.value,
        )


def freeze_reach(model: RegisteredModel, actor: Actor) -> Role:
    """Return the scope of a freeze override by `actor`, as the role that it corresponds to."""
    is_global = actor_has_role(actor, None, role_to_freeze(None))
    return role_to_freeze(None) if is_global else role_to_freeze(model)


def uncovered(freezes: Sequence[Freeze], reach: Role | str) -> list[Freeze]:
    """Return the freezes that an override with that reach does not cover.

    The override of an operator covers freezes of the model, that of an admin also freezes of all
    models. An empty reach is from a rollout older than this column, and covers all.
    """
    if not reach:
        return []
    return [each for each in freezes if RANK[role_to_freeze(each.window.model)] > RANK[Role(reach)]]


def require_start(
    model: RegisteredModel, overrides: Sequence[str], actor: Actor, now: datetime
) -> None:
    """Raise Conflict in a freeze, Forbidden when it is overridden without the role for it."""
    freezes = open_freezes(model, now)
    if freezes and Override.FREEZE not in overrides:
        raise frozen(model, freezes[0])
    require_reach(model, freezes, freeze_reach(model, actor))


def require_reach(model: RegisteredModel, freezes: Sequence[Freeze], reach: Role) -> None:
    """Raise Forbidden for a freeze that an override with that reach does not cover."""
    for freeze in uncovered(freezes, reach):
        role = role_to_freeze(freeze.window.model).value
        on = model.name if freeze.window.model else "all models"
        raise Forbidden(
            f"Overriding the freeze until {freeze.words} ({freeze.reason}) needs the role {role} "
            f"on {on}."
        )


def frozen(model: RegisteredModel, freeze: Freeze) -> Conflict:
    return Conflict(
        f"{model.name} is frozen until {freeze.words}: {freeze.reason}. "
        f"Override {Override.FREEZE.value!r} to continue",
        override=Override.FREEZE.value,
    )


def holding_freeze(rollout: Rollout, now: datetime) -> Freeze | None:
    """Return the open freeze that holds the rollout; a rollback is never held."""
    if rollout.kind == Rollout.Kind.ROLLBACK or rollout.phase not in HELD_PHASES:
        return None
    freezes = open_freezes(rollout.model, now)
    if Override.FREEZE in rollout.overrides or rollout.freeze_override_role:
        freezes = uncovered(freezes, rollout.freeze_override_role)
    return next(iter(freezes), None)


def require_signature(
    stable: ModelVersion, target: ModelVersion, overrides: Sequence[str]
) -> list[str]:
    """Return the signature differences. Raises Invalid when they are not overridden."""
    difference = signature_difference(stable, target)
    if difference and Override.SIGNATURE not in overrides:
        raise Invalid(
            f"The signature of {target} differs from stable {stable}: {difference[0]}. Override "
            f"{Override.SIGNATURE.value!r} to switch to it at once, without steps: the two cannot "
            "share traffic",
            difference=difference,
            override=Override.SIGNATURE.value,
        )
    return difference


def signature_difference(stable: ModelVersion, target: ModelVersion) -> list[str]:
    """Return one sentence for each difference of the signatures."""
    differences = []
    for side in ("inputs", "outputs"):
        old = {item["name"]: item for item in stable.signature[side]}
        new = {item["name"]: item for item in target.signature[side]}
        differences += [f"{side[:-1]} {name!r} is missing" for name in old if name not in new]
        differences += [f"{side[:-1]} {name!r} is new" for name in new if name not in old]
        for name in old.keys() & new.keys():
            before, after = (f"{t['datatype']} {t['shape']}" for t in (old[name], new[name]))
            if before != after:
                differences.append(f"{side[:-1]} {name!r} was {before} and is {after}")
    if stable.batched != target.batched:
        differences.append("only one of them has a batch dimension")
    return sorted(differences)
