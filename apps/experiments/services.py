"""Start, advance, pause, resume, stop, abandon and refresh experiments.

Each action is one transaction. A live experiment holds the model's only split; units are routed
only while it runs. `revision` is the one that the caller last read: an outdated one is a Conflict.
`definitions` creates drafts, `weights` changes weights, `ship` ships winners.
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
    end_routing,
    enqueue_event,
    move,
    split_document,
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
ABANDONED = "The experiment was abandoned; there is no verdict."


@transaction.atomic
def start_experiment(
    *,
    experiment: Experiment,
    actor: Actor,
    now: datetime,
    reason: str = "",
    revision: int | None = None,
) -> None:
    """Take the model's split and load the variants' versions; `advance_experiment` routes later.

    Raises:
        Conflict: not a draft, outdated revision, or the model has a live rollout or experiment.
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
    move(
        experiment,
        E.PREPARING,
        reason or "started: its versions are being loaded",
        actor,
        now,
        event="experiment.started",
        started_at=now,
    )


def _require_free(experiment: Experiment) -> None:
    """Raise Conflict, with the holder's name, when the model's split is taken.

    This only gives a better message: of two concurrent starts, the split's constraint refuses one.
    """
    holder = LiveSplit.objects.filter(model=experiment.model).first()
    if holder is None:
        return
    other = Experiment.objects.filter(pk=holder.owner_id).first()
    name = f"experiment {other.name}" if other else f"rollout {holder.owner_id}"
    raise Conflict(
        f"{experiment.model.name} already has a live {name}; end it before you start another",
        holder=str(holder.owner_id),
        kind="experiment" if other else "rollout",
    )


@transaction.atomic
def advance_experiment(*, experiment: Experiment, now: datetime) -> bool:
    """Advance a preparing experiment by one step; return whether its state changed.

    It fails with the reason when one of its versions cannot be loaded, and runs when all are ready.
    A version without a deployment is deployed again. The call is idempotent.
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
    if _unready_versions(variants):
        return False
    _run(experiment, variants, now)
    return True


def _unready_versions(variants: Sequence[Variant]) -> list[str]:
    """Return the names of the versions that are not ready to serve."""
    deployments = deployments_of(variants)
    return sorted(
        {
            str(variant.version)
            for variant in variants
            if (deployment := deployments.get(variant.version_id)) is None
            or deployment.state != DeploymentState.READY
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
    """Stop assigning units: all requests get stable. The split and the loaded versions stay.

    Raises Conflict when the experiment is not running, or `revision` is outdated.
    """
    check_move(experiment, E.PAUSED, revision)
    route_split(owner_id=experiment.pk, document={})
    generation = publish_table(reason=f"experiment {experiment.name} paused", actor=actor, now=now)
    move(
        experiment,
        E.PAUSED,
        reason or "paused by hand",
        actor,
        now,
        event="experiment.paused",
        generation=generation,
    )


@transaction.atomic
def resume_experiment(
    *,
    experiment: Experiment,
    actor: Actor,
    now: datetime,
    reason: str = "",
    revision: int | None = None,
) -> None:
    """Assign units again, each to its previous variant: salts and weights are unchanged.

    Raises Conflict when it is not paused, `revision` is outdated, or a version is not ready.
    """
    if experiment.state != E.PAUSED:
        raise Conflict(
            f"experiment {experiment.name} is {experiment.state}; only a paused one can be resumed",
            state=experiment.state,
        )
    check_move(experiment, E.RUNNING, revision)
    variants = variants_of(experiment)
    if unready := _unready_versions(variants):
        raise Conflict(f"{', '.join(unready)} is not ready; load it again, then resume")
    route_split(owner_id=experiment.pk, document=split_document(experiment, variants))
    generation = publish_table(reason=f"experiment {experiment.name} resumed", actor=actor, now=now)
    move(
        experiment,
        E.RUNNING,
        reason or "resumed by hand",
        actor,
        now,
        event="experiment.resumed",
        generation=generation,
    )


@transaction.atomic
def stop_experiment(
    *,
    experiment: Experiment,
    actor: Actor,
    now: datetime,
    reason: str = "",
    revision: int | None = None,
) -> None:
    """End the experiment: no unit is assigned any more. The next ticks compute the final result.

    Raises Conflict when it is not preparing, running or paused, or `revision` is outdated.
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
    """End the experiment without a verdict: its numbers are frozen as they are.

    Raises Conflict when it is not preparing, running or paused, or `revision` is outdated.
    """
    result = dict(experiment.result)
    no_verdict = {"phase": "final", "verdict": ABANDONED, "winner": None}
    end_experiment(
        experiment=experiment,
        conclusion=Experiment.Conclusion.ABANDONED,
        actor=actor,
        now=now,
        reason=reason,
        revision=revision,
        result={**result, **no_verdict, "is_significant": False},
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
    """Complete it in the caller's transaction: snapshot the result, release the model's split."""
    check_move(experiment, E.COMPLETED, revision)
    keep_result(experiment, f"when the experiment was {conclusion.label.lower()}", actor, now)
    move(
        experiment,
        E.COMPLETED,
        reason or conclusion.label.lower(),
        actor,
        now,
        event="experiment.completed",
        **{"conclusion": conclusion.value, "ended_at": now, "refresh_due_at": now, **changes},
    )
    end_routing(experiment, conclusion.label.lower(), actor, now)


@transaction.atomic
def request_refresh(
    *, experiment: Experiment, actor: Actor, now: datetime, revision: int | None = None
) -> None:
    """Make the next tick analyse it, whatever its size. Raises Conflict unless running or paused.

    `actor` is unused: an analysis does not affect serving and is not audited.
    """
    check_revision(experiment, revision)
    if experiment.state not in {E.RUNNING, E.PAUSED}:
        raise Conflict(
            f"experiment {experiment.name} is {experiment.state}; only a running or paused one "
            "can be analysed again"
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
        reason="the experiment runs",
        actor=INTERLOCK.name,
    )
    reason = f"all its versions are ready; routed since generation {generation}"
    move(experiment, E.RUNNING, reason, INTERLOCK, now, generation=generation)


def _fail(experiment: Experiment, reason: str, now: datetime) -> None:
    move(experiment, E.FAILED, reason, INTERLOCK, now, event="experiment.failed", ended_at=now)
    end_routing(experiment, "failed", INTERLOCK, now)


@transaction.atomic
def enqueue_result_events(
    *, experiment: Experiment, result: dict[str, Any], now: datetime
) -> dict[str, Any]:
    """Enqueue the events of `result` that were not sent before; return it with all sent events.

    Call it in the transaction that stores the return value, with the experiment's row locked.
    """
    sent = list(experiment.result.get("sent_events", ()))
    ratio = result.get("sample_ratio") or {}
    occurrences = {
        "experiment.significant": bool(result.get("is_significant")),
        "experiment.mismatch": ratio.get("state") in {"srm", "unexpected-units"},
    }
    for event, has_occurred in occurrences.items():
        if has_occurred and event not in sent:
            sent.append(event)
            reason = ratio.get("reason") if event.endswith("mismatch") else result.get("verdict")
            enqueue_event(experiment, event, INTERLOCK, now, str(reason))
    return {**result, "sent_events": sent}
