"""Public moves of an experiment: start, advance, pause, resume, stop, abandon, refresh on demand.

Each is one transaction. While an experiment is live it holds the model's one split; a unit is
routed only while it runs. `revision` is what the caller last saw: a stale one is a Conflict.
Drafts are made in `definitions`, weights are changed in `weights`, winners shipped in `ship`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db import transaction

from apps.experiments.definitions import create_experiment, delete_experiment, edit_experiment
from apps.experiments.draft_checks import (
    PLANNED_UNITS_MAX,
    VARIANTS_MAX,
    VARIANTS_MIN,
    MetricChoice,
    VariantSpec,
)
from apps.experiments.lifecycle import (
    check_move,
    check_revision,
    check_signatures,
    deployments_of,
    leave_table,
    move,
    split_document,
    tell,
    variants_of,
)
from apps.experiments.metrics import create_metric, delete_metric, edit_metric
from apps.experiments.models import Experiment, Variant, WeightChange
from apps.experiments.snapshots import keep_result
from apps.experiments.states import ExperimentState
from apps.lib.actors import INTERLOCK, Actor
from apps.lib.errors import Conflict
from apps.models.models import LiveSplit
from apps.models.services import acquire_split, deploy_version, route_split
from apps.models.states import DeploymentState
from apps.rollouts.publication import publish_table

__all__ = [
    "PLANNED_UNITS_MAX",
    "VARIANTS_MAX",
    "VARIANTS_MIN",
    "MetricChoice",
    "VariantSpec",
    "create_experiment",
    "create_metric",
    "delete_experiment",
    "delete_metric",
    "edit_experiment",
    "edit_metric",
    "split_document",
]

E = ExperimentState
ABANDONED = "The experiment was abandoned; no verdict is claimed."


@transaction.atomic
def start_experiment(
    *,
    experiment: Experiment,
    actor: Actor,
    now: datetime,
    reason: str = "",
    revision: int | None = None,
) -> None:
    """Take the model's split and load the variants' versions; routing waits for `advance`.

    Raises:
        Conflict: not a draft, changed meanwhile, or the model has a live rollout or experiment.
        Invalid: the variants no longer fit the model's stable version.
    """
    check_move(experiment, E.PREPARING, revision)
    variants = variants_of(experiment)
    versions = sorted({variant.version for variant in variants}, key=lambda v: v.number)
    check_signatures(experiment.model, versions)
    _require_free(experiment)
    acquire_split(
        model=experiment.model,
        kind=LiveSplit.Kind.EXPERIMENT,
        owner_id=experiment.pk,
        versions=versions,
    )
    for version in versions:
        deploy_version(version=version, actor=actor, now=now)
    told = reason or "started: its versions are being loaded"
    move(experiment, E.PREPARING, told, actor, now, told="experiment.started", started_at=now)


def _require_free(experiment: Experiment) -> None:
    """Raise Conflict, naming it, when another experiment holds the split; a rollout names itself.

    This only words the refusal: two who start at once are told apart by the split's constraint.
    """
    held = LiveSplit.objects.filter(model=experiment.model).first()
    if held is None:
        return
    other = Experiment.objects.filter(pk=held.owner_id).first()
    what = f"experiment {other.name}" if other else f"rollout {held.owner_id}"
    raise Conflict(
        f"{experiment.model.name} already has a live {what}; end it before you start another",
        holder=str(held.owner_id),
        kind="experiment" if other else "rollout",
    )


@transaction.atomic
def advance_experiment(*, experiment: Experiment, now: datetime) -> bool:
    """Take a preparing experiment one step on; return whether it changed state.

    It fails with the reason when one of its versions cannot be loaded, and runs when all are ready.
    A version that is no longer placed is placed again. Anybody may call it at any time.
    """
    if experiment.state != E.PREPARING:
        return False
    variants = variants_of(experiment)
    deployments = deployments_of(variants)
    for version in {variant.version for variant in variants}:
        deployment = deployments.get(version.pk)
        if deployment is not None and deployment.state == DeploymentState.FAILED:
            _fail(experiment, f"{version} cannot be loaded: {deployment.reason}", now)
            return True
        if deployment is None or deployment.state in {
            DeploymentState.ABSENT,
            DeploymentState.DRAINING,
        }:
            deploy_version(version=version, actor=INTERLOCK, now=now)
    if _unready(variants):
        return False
    _run(experiment, variants, now)
    return True


def _unready(variants: Sequence[Variant]) -> list[str]:
    """Return the versions that cannot serve now."""
    deployments = deployments_of(variants)
    return sorted(
        {
            str(variant.version)
            for variant in variants
            if (found := deployments.get(variant.version_id)) is None
            or found.state != DeploymentState.READY
        }
    )


@transaction.atomic
def pause_experiment(
    *,
    experiment: Experiment,
    actor: Actor,
    now: datetime,
    reason: str = "",
    revision: int | None = None,
) -> None:
    """Route nobody: everybody gets stable. The split is kept, and so are the versions loaded.

    Raises Conflict when it is not running, or was changed meanwhile.
    """
    check_move(experiment, E.PAUSED, revision)
    route_split(owner_id=experiment.pk, document={})
    generation = publish_table(reason=f"experiment {experiment.name} paused", actor=actor, now=now)
    told = reason or "paused by hand"
    move(experiment, E.PAUSED, told, actor, now, told="experiment.paused", generation=generation)


@transaction.atomic
def resume_experiment(
    *,
    experiment: Experiment,
    actor: Actor,
    now: datetime,
    reason: str = "",
    revision: int | None = None,
) -> None:
    """Route units again: each gets the variant that it had, as salts and weights are the same.

    Raises Conflict when it is not paused, was changed meanwhile, or a version is not ready.
    """
    if experiment.state != E.PAUSED:
        raise Conflict(
            f"experiment {experiment.name} is {experiment.state}; only a paused one is resumed",
            state=experiment.state,
        )
    check_move(experiment, E.RUNNING, revision)
    variants = variants_of(experiment)
    if unready := _unready(variants):
        raise Conflict(f"{', '.join(unready)} cannot serve now; load it again, then resume")
    route_split(owner_id=experiment.pk, document=split_document(experiment, variants))
    generation = publish_table(reason=f"experiment {experiment.name} resumed", actor=actor, now=now)
    told = reason or "resumed by hand"
    move(experiment, E.RUNNING, told, actor, now, told="experiment.resumed", generation=generation)


@transaction.atomic
def stop_experiment(
    *,
    experiment: Experiment,
    actor: Actor,
    now: datetime,
    reason: str = "",
    revision: int | None = None,
) -> None:
    """End it: nobody is assigned from now on. The final result is made soon after, by the tick.

    Raises Conflict when it is neither preparing, running nor paused, or was changed meanwhile.
    """
    end_experiment(
        experiment=experiment,
        conclusion=Experiment.Conclusion.STOPPED,
        actor=actor,
        now=now,
        reason=reason,
        revision=revision,
    )


@transaction.atomic
def abandon_experiment(
    *,
    experiment: Experiment,
    actor: Actor,
    now: datetime,
    reason: str = "",
    revision: int | None = None,
) -> None:
    """End it without a verdict: the numbers are frozen as they are, and none of them is claimed.

    Raises Conflict when it is neither preparing, running nor paused, or was changed meanwhile.
    """
    result = dict(experiment.result)
    claims_nothing = {"phase": "final", "verdict": ABANDONED, "winner": None}
    end_experiment(
        experiment=experiment,
        conclusion=Experiment.Conclusion.ABANDONED,
        actor=actor,
        now=now,
        reason=reason,
        revision=revision,
        result={**result, **claims_nothing, "is_significant": False},
        refresh_due_at=None,
    )


def end_experiment(
    *,
    experiment: Experiment,
    conclusion: Experiment.Conclusion,
    actor: Actor,
    now: datetime,
    reason: str,
    revision: int | None,
    **changes: Any,
) -> None:
    """Complete it in the caller's transaction: keep the result as it is, free the model's split."""
    check_move(experiment, E.COMPLETED, revision)
    told = reason or conclusion.label.lower()
    keep_result(experiment, f"as it stood when it was {conclusion.label.lower()}", actor, now)
    move(
        experiment,
        E.COMPLETED,
        told,
        actor,
        now,
        told="experiment.completed",
        **{"conclusion": conclusion.value, "ended_at": now, "refresh_due_at": now, **changes},
    )
    leave_table(experiment, conclusion.label.lower(), actor, now)


@transaction.atomic
def request_refresh(
    *, experiment: Experiment, actor: Actor, now: datetime, revision: int | None = None
) -> None:
    """Let the next tick analyse it, however large it is. Raises Conflict for one that is not live.

    `actor` is taken as everywhere; an analysis changes nothing that serves and is not audited.
    """
    check_revision(experiment, revision)
    if experiment.state not in {E.RUNNING, E.PAUSED}:
        raise Conflict(
            f"experiment {experiment.name} is {experiment.state}; only a running or paused one "
            "is analysed again"
        )
    Experiment.objects.filter(pk=experiment.pk).update(refresh_due_at=now)


def _run(experiment: Experiment, variants: Sequence[Variant], now: datetime) -> None:
    route_split(owner_id=experiment.pk, document=split_document(experiment, variants))
    generation = publish_table(
        reason=f"experiment {experiment.name} runs", actor=INTERLOCK, now=now
    )
    WeightChange.objects.create(
        experiment=experiment,
        at=now,
        weights_bp={variant.name: variant.weight_bp for variant in variants},
        reason="it runs",
        actor=INTERLOCK.name,
    )
    reason = f"all its versions are ready; it is routed from generation {generation} on"
    move(experiment, E.RUNNING, reason, INTERLOCK, now, generation=generation)


def _fail(experiment: Experiment, reason: str, now: datetime) -> None:
    move(experiment, E.FAILED, reason, INTERLOCK, now, told="experiment.failed", ended_at=now)
    leave_table(experiment, "failed", INTERLOCK, now)


@transaction.atomic
def tell_result(*, experiment: Experiment, result: dict[str, Any], now: datetime) -> dict[str, Any]:
    """Return `result` with what was told of it so far, and tell what is told once and is new.

    To be called in the transaction that stores what this returns, with the experiment's row locked.
    """
    told = list(experiment.result.get("told", ()))
    ratio = result.get("sample_ratio") or {}
    news = {
        "experiment.significant": bool(result.get("is_significant")),
        "experiment.mismatch": ratio.get("state") in {"srm", "unexpected-units"},
    }
    for event, is_so in news.items():
        if is_so and event not in told:
            told.append(event)
            why = str(ratio.get("reason") if event.endswith("mismatch") else result.get("verdict"))
            tell(experiment, event, INTERLOCK, now, why)
    return {**result, "told": told}
