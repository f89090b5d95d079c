"""Factories of rows for tests of experiments: a model with a stable version, and experiments."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from apps.experiments.models import Experiment, ExposureRow, Metric, OutcomeRow, TouchedUnit
from apps.experiments.services import (
    MetricChoice,
    VariantSpec,
    advance_experiment,
    create_experiment,
    start_experiment,
)
from apps.lib.actors import Actor
from apps.models.models import Deployment, ModelVersion, RegisteredModel, ServingCluster
from apps.models.states import DeploymentState
from contract.bucketing import bucket
from contract.messages import Batch, Exposure, Outcome

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
NOW_MS = round(NOW.timestamp() * 1_000)
ANNA = Actor("anna", "127.0.0.1")
SIGNATURE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "INT64", "shape": [-1]}],
}
HALVES = (
    VariantSpec("weak", 1, 5_000, is_control=True),
    VariantSpec("strong", 2, 5_000),
)


def make_version(model: RegisteredModel, number: int, **fields: Any) -> ModelVersion:
    defaults: dict[str, Any] = {
        "signature": SIGNATURE,
        "artifact_uri": "models:/x",
        "artifact_path": "x",
        "artifact_sha256": "0" * 64,
        "artifact_bytes": 1,
        "created_at": NOW,
    }
    return ModelVersion.objects.create(model=model, number=number, **(defaults | fields))


def make_model(name: str = "digits", versions: int = 2) -> RegisteredModel:
    """Return a model with `versions` versions, the first of which is stable."""
    ServingCluster.objects.get_or_create(
        name="local",
        defaults={
            "endpoints": ["http://127.0.0.1:8000"],
            "repository_path": "/nowhere",
            "is_default": True,
        },
    )
    model = RegisteredModel.objects.create(name=name)
    rows = [make_version(model, number) for number in range(1, versions + 1)]
    model.stable = rows[0]
    model.save()
    return model


def make_metric(name: str = "accuracy", kind: str = Metric.Kind.PROPORTION) -> Metric:
    return Metric.objects.create(name=name, kind=kind)


def make_draft(**fields: Any) -> Experiment:
    defaults: dict[str, Any] = {"name": "weak-or-strong", "variants": HALVES}
    values = defaults | fields
    return create_experiment(
        model=values.pop("model", None) or make_model(),
        metrics=values.pop("metrics", None)
        or [MetricChoice(values.pop("metric", None) or make_metric())],
        actor=ANNA,
        now=NOW,
        **values,
    )


def set_deployments(experiment: Experiment, state: DeploymentState, reason: str = "") -> None:
    rows = Deployment.objects.filter(version__model=experiment.model)
    rows.update(state=state, reason=reason)


def make_running(**fields: Any) -> Experiment:
    experiment = make_draft(**fields)
    start_experiment(experiment=experiment, actor=ANNA, now=NOW)
    set_deployments(experiment, DeploymentState.READY)
    advance_experiment(experiment=experiment, now=NOW)
    return experiment


def expose(
    experiment: Experiment, unit: str, variant: str, after_s: float = 0.0, **more: Any
) -> ExposureRow:
    TouchedUnit.objects.create(unit=unit)
    return ExposureRow.objects.create(
        experiment=experiment,
        unit=unit,
        variant_name=variant,
        version_number="1",
        at=NOW + timedelta(seconds=after_s),
        bucket=bucket(experiment.variant_salt, unit),
        **more,
    )


def observe(metric: Metric, unit: str, value: float, after_s: float = 1.0) -> OutcomeRow:
    TouchedUnit.objects.create(unit=unit)
    return OutcomeRow.objects.create(
        event_id=f"{unit}-{after_s}-{metric.name}",
        unit=unit,
        metric=metric,
        value=value,
        occurred_at=NOW + timedelta(seconds=after_s),
    )


def exposure(experiment: Experiment, unit: str, variant: str, **fields: Any) -> Exposure:
    values = {"experiment": str(experiment.pk), "version": "1", "at_ms": NOW_MS} | fields
    return Exposure(unit=unit, variant=variant, **values)


def outcome(event_id: str = "e1", **fields: Any) -> Outcome:
    defaults: dict[str, Any] = {
        "unit_id": "u1",
        "metric": "accuracy",
        "value": 1.0,
        "occurred_at_ms": NOW_MS,
    }
    return Outcome(event_id=event_id, **(defaults | fields))


def batch(sequence: int = 1, **lists: Any) -> Batch:
    return Batch(instance="proxy-1", boot="b", sequence=sequence, **lists)
