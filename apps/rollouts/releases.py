"""Several models that move together or not at all: one rollout each, by one plan, in step.

No model gets further before all may, all are promoted in one transaction, and one that goes back
takes the others with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from django.db import transaction

from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.lib.validation import check_row
from apps.models.audit import record_audit
from apps.models.models import ModelVersion, RegisteredModel
from apps.rollouts.models import Plan, Release, Rollout
from apps.rollouts.services import abort_rollout, can_take_back, default_plan, start_rollout
from apps.rollouts.states import LIVE_PHASES, Phase


@transaction.atomic
def start_release(
    *,
    name: str,
    targets: Mapping[RegisteredModel, ModelVersion],
    plan: Plan | None = None,
    actor: Actor,
    now: datetime,
    overrides: Collection[str] = (),
    reason: str = "",
) -> Release:
    """Begin to make each model's target stable, all by `plan` or the default one.

    Raises:
        Invalid: there are fewer than two models, one has no stable version yet or would have to be
            switched to without steps, and what `start_rollout` refuses.
        Conflict: a release of that name is live, and what `start_rollout` refuses. Then nothing
            was started.
    """
    if len(targets) < 2:
        raise Invalid("A release moves at least two models; start a rollout for a single one")
    plan = plan or default_plan()
    if Release.objects.filter(name=name, rollouts__phase__in=LIVE_PHASES).exists():
        raise Conflict(f"A release named {name} is live already")
    release = Release(name=name, plan_name=plan.name, started_by=actor.name, started_at=now)
    check_row(release, {"name"})
    release.save()
    # In one order for everybody: two releases that share models must not wait for each other.
    for model in sorted(targets, key=lambda each: each.pk):
        rollout = start_rollout(
            model=model,
            target=targets[model],
            plan=plan,
            actor=actor,
            now=now,
            overrides=overrides,
            reason=reason,
            release=release,
        )
        if rollout.kind != Rollout.Kind.CANARY:
            raise Invalid(
                f"{rollout.target} cannot be moved in steps ({rollout.get_kind_display().lower()}):"
                " roll it out by itself, before the release"
            )
    told = {str(model.name): target.number for model, target in targets.items()}
    record_audit(actor=actor, action="release.started", target=name, after=told)
    return release


@transaction.atomic
def abort_release(*, release: Release, actor: Actor, now: datetime, reason: str = "") -> None:
    """Take all traffic off the targets of all its models, now; those that it has promoted go back.

    Raises:
        Conflict: it succeeded, and none of its targets can be gone back from any more.
    """
    rollouts = list(release.rollouts.select_related("model", "baseline", "target__model"))
    # One that goes back takes the others with it; one that does so already is left to it.
    live = [each for each in rollouts if each.is_live and each.phase != Phase.ROLLING_BACK]
    promoted = [each for each in rollouts if can_take_back(each)]
    if first := next(iter([*live, *promoted, *rollouts]), None):
        abort_rollout(rollout=first, actor=actor, now=now, reason=reason)
