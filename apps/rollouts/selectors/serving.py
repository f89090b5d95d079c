"""The serving state: each model with traffic, live rollout or experiment; recent decisions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Max, Q, prefetch_related_objects

from apps.models.models import Deployment, LiveSplit, ModelVersion, RefusedImport, RegisteredModel
from apps.models.selectors import Share, list_models, shares_of
from apps.models.states import DeploymentState, RegistryState
from apps.rollouts.models import Rollout, RolloutEvent
from apps.rollouts.selectors.fleet import Fleet
from apps.rollouts.selectors.rollouts import StepView, steps_of
from apps.rollouts.selectors.telemetry import MINUTE, Traffic, add_up, last_minute, minute_stamp
from apps.rollouts.services import earlier_versions
from apps.rollouts.states import LIVE_PHASES, Phase

DECISIONS_MAX = 12
# The other phases only prepare these, or confirm that all instances applied them.
DECISIVE = [Phase.BAKING, Phase.PAUSED, Phase.PROMOTING, Phase.ROLLING_BACK, Phase.FAILED]


@dataclass(frozen=True)
class Served:
    """A model for the overview."""

    model: RegisteredModel
    shares: list[Share]
    traffic: Traffic
    rollout: Rollout | None
    steps: list[StepView]
    # The experiment that holds the split, or None.
    experiment: Any


def read_serving(now: datetime) -> list[Served]:
    """Return all active models, ordered by name."""
    models = list(list_models().filter(state=RegistryState.ACTIVE))
    traffic = last_minute(now)
    live = Rollout.objects.filter(phase__in=LIVE_PHASES).select_related("target", "baseline")
    rollouts = {rollout.model_id: rollout for rollout in live}
    experiments = _live_experiments(models)
    return [
        Served(
            model=model,
            shares=shares_of(model),
            traffic=add_up(traffic.get(model.name, {}).values(), MINUTE.total_seconds()),
            rollout=rollouts.get(model.pk),
            steps=steps_of(rollouts[model.pk]) if model.pk in rollouts else [],
            experiment=experiments.get(model.pk),
        )
        for model in models
    ]


def _live_experiments(models: list[RegisteredModel]) -> dict[int, Any]:
    """Return the experiment that holds the split of each model.

    The app experiments depends on this one, so experiments are read by their relation only.
    """
    holding = [m for m in models if _split_kind(m) == LiveSplit.Kind.EXPERIMENT]
    prefetch_related_objects(holding, "experiments")
    return {
        model.pk: next(
            (e for e in model.experiments.all() if e.pk == model.live_split.owner_id), None
        )
        for model in holding
    }


def experiment_of(model: RegisteredModel) -> Any:
    """Return the experiment that holds the split of the model, or None."""
    return _live_experiments([model]).get(model.pk)


def _split_kind(model: RegisteredModel) -> str | None:
    split = getattr(model, "live_split", None)
    return split.kind if split else None


@dataclass(frozen=True)
class RollbackTarget:
    """An earlier stable version; `quarantine` is the reason for which it needs an override."""

    version: ModelVersion
    is_loaded: bool
    quarantine: str


def rollback_targets(model: RegisteredModel) -> list[RollbackTarget]:
    """Return the earlier stable versions, newest first."""
    versions = earlier_versions(model)
    prefetch_related_objects(versions, "deployments", "quarantine")
    targets = [
        RollbackTarget(
            version,
            any(each.state == DeploymentState.READY for each in version.deployments.all()),
            # The previous stable version never needs an override.
            _quarantine_of(version) if version.pk != model.previous_stable_id else "",
        )
        for version in versions
    ]
    return sorted(targets, key=lambda target: target.version.number, reverse=True)


def _quarantine_of(version: ModelVersion) -> str:
    held = getattr(version, "quarantine", None)
    return held.reason if held else ""


def recent_decisions() -> list[RolloutEvent]:
    """Return the last transitions that moved or stopped traffic, newest first."""
    events = RolloutEvent.objects.filter(to_state__in=DECISIVE).select_related(
        "rollout__model", "rollout__target"
    )
    return list(events.order_by("-id")[:DECISIONS_MAX])


def failed_deployments() -> list[Deployment]:
    """Return up to 10 failed deployments of all models, newest first."""
    failed = Deployment.objects.filter(state=DeploymentState.FAILED)
    return list(failed.select_related("version__model", "cluster").order_by("-changed_at")[:10])


def overview_stamp(now: datetime, fleet: Fleet) -> tuple[object, ...]:
    """Return values that change whenever the overview changes, apart from ages."""
    return (
        *minute_stamp(now),
        *fleet.stamp,
        *RolloutEvent.objects.aggregate(Max("id")).values(),
        *Rollout.objects.filter(phase__in=LIVE_PHASES)
        .order_by("pk")
        .values_list("pk", "revision", "reason"),
        *Deployment.objects.aggregate(Max("changed_at")).values(),
        *ModelVersion.objects.aggregate(Max("id")).values(),
        *RegisteredModel.objects.order_by("pk").values_list(
            "stable", "live_split__owner_id", "state"
        ),
    )


def model_stamp(model: RegisteredModel) -> tuple[object, ...]:
    """Return values that change with the versions, deployments, split or rollouts of a model."""
    deployments = Deployment.objects.filter(version__model=model)
    return (
        model.stable_id,
        model.previous_stable_id,
        model.state,
        *model.versions.order_by("pk").values_list("state", "state_problem"),
        *deployments.order_by("pk").values_list("state", "revision", "reason"),
        *model.versions.aggregate(Max("id")).values(),
        *model.aliases.order_by("pk").values_list("name", "version"),
        *LiveSplit.objects.filter(model=model).values_list("owner_id", "document"),
        *model.rollouts.order_by("-started_at").values_list("pk", "revision", "reason")[:20],
        *RefusedImport.objects.filter(Q(model_name=model.name)).values_list("number", "at"),
    )
