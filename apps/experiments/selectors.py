"""Reads for the pages of experiments."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet

from apps.experiments.charts import exposure_figure, interval_figure
from apps.experiments.models import Experiment, Metric
from apps.experiments.states import EXPERIMENT_TRANSITIONS, ExperimentState
from apps.experiments.tables import notices, variant_cells
from apps.lib.errors import NotFound
from apps.lib.pages import stamp_of
from apps.models.models import Deployment, ModelVersion, RegisteredModel


def experiment_rows() -> QuerySet[Experiment]:
    """Return the experiments of the list page, the newest first."""
    rows = Experiment.objects.select_related("model").prefetch_related("metric_uses__metric")
    return rows.order_by("-created_at", "name")


def find_experiment(name: str) -> Experiment:
    """Return the experiment with its model and metric. Raises NotFound."""
    rows = Experiment.objects.select_related("model__stable")
    rows = rows.prefetch_related("metric_uses__metric")
    experiment = rows.filter(name=name).first()
    if experiment is None:
        raise NotFound(f"There is no experiment named {name}.")
    return experiment


def is_final(experiment: Experiment) -> bool:
    """Say whether nothing will change it any more."""
    return ExperimentState(experiment.state) in EXPERIMENT_TRANSITIONS.final


def experiment_stamp(experiment: Experiment, *seen_by: object) -> str:
    """Return a digest of all that the experiment's page shows."""
    placed = [(d.pk, d.state) for d in placements(experiment)]
    return stamp_of(
        experiment.revision,
        experiment.refreshed_at,
        experiment.refresh_error,
        placed,
        *seen_by,
    )


def placements(experiment: Experiment) -> list[Deployment]:
    """Return the deployments that a preparing experiment waits for; later nobody asks."""
    if experiment.state != ExperimentState.PREPARING:
        return []
    rows = Deployment.objects.select_related("version__model", "cluster").filter(
        version__in=experiment.variants.values("version"), cluster__is_default=True
    )
    return list(rows.order_by("version__number"))


def experiment_context(experiment: Experiment) -> dict[str, Any]:
    """Return what the page and its live fragment render."""
    variants = list(experiment.variants.select_related("version"))
    result = experiment.result
    alpha_percent = experiment.alpha_ppm / 10_000
    return {
        "experiment": experiment,
        "variants": variant_cells(variants, result),
        "verdict": result.get("verdict", ""),
        "is_significant": result.get("is_significant", False),
        "quality": result.get("quality", {}),
        "notices": notices(result, experiment.refresh_error),
        # Each reading has half of α, split over the treatments.
        "interval_percent": f"{100 - alpha_percent / 2 / max(1, len(variants) - 1):.5g}",
        "alpha_percent": f"{alpha_percent:g}",
        "placements": placements(experiment),
        "events": list(experiment.events.order_by("-id")),
        "is_final": is_final(experiment),
        "can_stop": experiment.state in {ExperimentState.PREPARING, ExperimentState.RUNNING},
        "interval_figure": interval_figure(result),
        "exposure_figure": exposure_figure(result),
    }


def models_to_compare() -> QuerySet[RegisteredModel]:
    """Return the models that an experiment can be made on: those with a stable version."""
    return RegisteredModel.objects.select_related("stable").exclude(stable=None)


def versions_to_compare(model: RegisteredModel) -> list[ModelVersion]:
    """Return the versions with stable's signature, the newest first."""
    stable = model.stable
    if stable is None:
        return []
    versions = model.versions.select_related("model").order_by("-number")
    return [v for v in versions if v.signature == stable.signature and v.batched == stable.batched]


def metric_rows() -> QuerySet[Metric]:
    return Metric.objects.order_by("name")
