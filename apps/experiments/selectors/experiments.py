"""Query experiments for the list page and for an experiment's page."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db.models import F, Func, JSONField, Max, QuerySet, TextField, Value
from django.db.models.fields.json import KeyTextTransform, KeyTransform

from apps.experiments.models import Experiment
from apps.experiments.result_tables.breakdowns import guardrail_tone
from apps.experiments.states import EXPERIMENT_TRANSITIONS, ExperimentState
from apps.lib.errors import NotFound
from apps.lib.pages import stamp_of
from apps.models.models import Deployment, ModelVersion, RegisteredModel

E = ExperimentState
GUARDRAIL_STATES = '$.metrics[*] ? (@.role == "guardrail").comparisons[*].non_inferiority.state'


def experiment_rows(**filters: str) -> QuerySet[Experiment]:
    """Return the experiments of the list page, newest first, without their whole results.

    `filters` may hold `model__name` and `state`; empty ones are ignored.
    """
    conditions = {key: value for key, value in filters.items() if value}
    rows = (
        Experiment.objects.filter(**conditions).defer("result").select_related("model", "rollout")
    )
    rows = rows.prefetch_related("metric_uses__metric").annotate(
        verdict=KeyTextTransform("verdict", "result"),
        is_significant=KeyTransform("is_significant", "result"),
        exposed=KeyTransform("exposed", KeyTransform("quality", "result")),
        guardrails=Func(
            F("result"),
            Value(GUARDRAIL_STATES, output_field=TextField()),
            function="jsonb_path_query_array",
            template="%(function)s(%(expressions)s::jsonpath)",
            output_field=JSONField(),
        ),
    )
    return rows.order_by("-created_at", "name")


def add_guardrails(rows: Any) -> None:
    """Set tone and text of the guardrails on each row of the list."""
    for row in rows:
        row.guardrail_tone, row.guardrail_words = guardrail_tone(row.guardrails or [])


def find_experiment(name: str) -> Experiment:
    """Return the experiment with its model and metrics; `result` is deferred.

    Raises NotFound.
    """
    rows = Experiment.objects.select_related("model__stable", "rollout").defer("result")
    rows = rows.prefetch_related("metric_uses__metric")
    experiment = rows.filter(name=name).first()
    if experiment is None:
        raise NotFound(f"There is no experiment named {name}.")
    return experiment


def is_over(experiment: Experiment) -> bool:
    """Return whether its state is final."""
    return E(experiment.state) in EXPERIMENT_TRANSITIONS.final


def awaits_final(experiment: Experiment, result: dict[str, Any]) -> bool:
    """Return whether it has ended and its final result is not computed yet."""
    is_computed = result.get("phase") == "final" or experiment.refresh_due_at is None
    return experiment.state == E.COMPLETED and not is_computed


def experiment_stamp(experiment: Experiment, *viewer: object) -> str:
    """Return a digest of everything that the experiment's page shows."""
    deployments = [(d.pk, d.state) for d in placements(experiment)]
    newest: datetime | None = experiment.snapshots.aggregate(newest=Max("at"))["newest"]
    return stamp_of(
        experiment.revision,
        experiment.refreshed_at,
        experiment.refresh_due_at,
        experiment.refresh_error,
        deployments,
        newest,
        *viewer,
    )


def placements(experiment: Experiment) -> list[Deployment]:
    """Return the deployments that a preparing experiment waits for; [] in other states."""
    if experiment.state != E.PREPARING:
        return []
    rows = Deployment.objects.select_related("version__model", "cluster").filter(
        version__in=experiment.variants.values("version"), cluster__is_default=True
    )
    return list(rows.order_by("version__number"))


def models_to_compare() -> QuerySet[RegisteredModel]:
    """Return the models that can have an experiment: those with a stable version."""
    return RegisteredModel.objects.active().select_related("stable").exclude(stable=None)


def versions_to_compare(model: RegisteredModel) -> list[ModelVersion]:
    """Return the versions with stable's signature, newest first."""
    stable = model.stable
    if stable is None:
        return []
    versions = model.versions.active().select_related("model").order_by("-number")
    return [v for v in versions if v.signature == stable.signature and v.batched == stable.batched]
