"""Releases: one rollout for each of several models, by one plan, in step.

No model advances before all may, all are promoted in one transaction, and the rollback of one
rolls back all.
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
from apps.rollouts.services import abort_rollout, can_roll_back, default_plan, start_rollout
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
    """Start a rollout to the target of each model, all by `plan` or the default plan.

    Raises:
        Invalid: there are fewer than two models, a model has no stable version yet, a target needs
            a switch without steps, or `start_rollout` raises it.
        Conflict: a release of that name is live, or `start_rollout` raises it. Nothing is started.
    """
    if len(targets) < 2:
        raise Invalid("A release needs at least two models; start a rollout for a single model")
    plan = plan or default_plan()
    if Release.objects.filter(name=name, rollouts__phase__in=LIVE_PHASES).exists():
        raise Conflict(f"A release named {name} is already live")
    release = Release(name=name, plan_name=plan.name, started_by=actor.name, started_at=now)
    check_row(release, {"name"})
    release.save()
    # In the same order everywhere, so that two releases with shared models cannot deadlock.
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
                f"{rollout.target} cannot go through steps ({rollout.get_kind_display().lower()}); "
                "roll it out separately, before the release"
            )
    after = {str(model.name): target.number for model, target in targets.items()}
    record_audit(actor=actor, action="release.started", target=name, after=after)
    return release


@transaction.atomic
def abort_release(*, release: Release, actor: Actor, now: datetime, reason: str = "") -> None:
    """Take all traffic off all targets now. Promoted models are rolled back.

    Raises:
        Conflict: it succeeded, and none of its targets can be rolled back any more.
    """
    rollouts = list(release.rollouts.select_related("model", "baseline", "target__model"))
    # The rollback of one rolls back all; a rollback in progress needs nothing.
    live = [each for each in rollouts if each.is_live and each.phase != Phase.ROLLING_BACK]
    promoted = [each for each in rollouts if can_roll_back(each)]
    if first := next(iter([*live, *promoted, *rollouts]), None):
        abort_rollout(rollout=first, actor=actor, now=now, reason=reason)
