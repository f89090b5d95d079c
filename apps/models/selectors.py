"""Reads of models and versions for pages: lists, traffic shares, comparison of versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from django.db.models import Prefetch, QuerySet

from apps.models.models import (
    Alias,
    Deployment,
    DeploymentEvent,
    ModelVersion,
    RefusedImport,
    RegisteredModel,
)
from apps.models.states import RegistryState
from contract.bucketing import BUCKETS
from contract.routing import STABLE


@dataclass(frozen=True)
class Share:
    """The share of a model's traffic that a version gets, in basis points, and its variant."""

    version: str
    variant: str
    weight_bp: int
    # The start of the share on a bar of all traffic.
    start_bp: int = 0


@dataclass(frozen=True)
class Difference:
    """One row of a comparison; None if a side lacks the item."""

    name: str
    stable: object
    target: object
    # Target minus stable, for numbers.
    change: float | None = None

    @property
    def differs(self) -> bool:
        return self.stable != self.target


@dataclass(frozen=True)
class Comparison:
    """Target compared to stable; `inputs` and `outputs` by tensor name, datatype and shape."""

    metrics: list[Difference]
    parameters: list[Difference]
    inputs: list[Difference]
    outputs: list[Difference]

    @property
    def signature_differs(self) -> bool:
        return any(row.differs for row in (*self.inputs, *self.outputs))


def list_models() -> QuerySet[RegisteredModel]:
    """Return models with stable, previous stable, live split and aliases loaded."""
    return RegisteredModel.objects.select_related(
        "stable", "previous_stable", "live_split"
    ).prefetch_related(Prefetch("aliases", Alias.objects.select_related("version")))


def list_versions(model: RegisteredModel, *, archived: bool = True) -> QuerySet[ModelVersion]:
    """Return versions, newest first, with aliases and deployments, without deleted ones.

    `archived`: include archived versions.
    """
    versions = model.versions.exclude(state=RegistryState.DELETED)
    if not archived:
        versions = versions.exclude(state=RegistryState.ARCHIVED)
    return with_deployments(versions)


def with_deployments(versions: QuerySet[ModelVersion]) -> QuerySet[ModelVersion]:
    """Prefetch aliases and deployments of `versions`."""
    deployments = Deployment.objects.select_related("cluster", "version__model").order_by("id")
    return versions.prefetch_related("aliases", Prefetch("deployments", deployments))


def promotable_versions(model: RegisteredModel) -> QuerySet[ModelVersion]:
    """Return active versions other than stable, newest first."""
    versions = model.versions.active().prefetch_related("aliases")
    return versions if model.stable is None else versions.exclude(pk=model.stable.pk)


def list_events(version: ModelVersion) -> QuerySet[DeploymentEvent]:
    """Return the last 50 events of the version's deployments, newest first."""
    events = DeploymentEvent.objects.filter(deployment__version=version)
    return events.select_related("deployment__cluster").order_by("-id")[:50]


def list_refused(model_name: str | None = None) -> QuerySet[RefusedImport]:
    """Return the refused imports of one model, or the last 20 of all models."""
    refused = RefusedImport.objects.all()
    if model_name is not None:
        return refused.filter(model_name=model_name)
    return refused.order_by("-at")[:20]


def shares_of(model: RegisteredModel) -> list[Share]:
    """Return the current traffic shares, stable first; empty without a stable version.

    Expects `stable` and `live_split` to be loaded. The shares of an experiment are relative to all
    traffic, not to the included units; they are rounded, and the sum stays 10,000.
    """
    if model.stable is None:
        return []
    split = getattr(model, "live_split", None)
    split_shares = _split_shares(split.document if split else {})
    left = BUCKETS - sum(share.weight_bp for share in split_shares)
    rest = [Share(str(model.stable.number), STABLE, left)] if left else []
    return _with_starts(rest + split_shares)


def _with_starts(shares: list[Share]) -> list[Share]:
    starts = accumulate((share.weight_bp for share in shares), initial=0)
    return [replace(share, start_bp=start) for share, start in zip(shares, starts, strict=False)]


def _split_shares(document: Mapping[str, Any]) -> list[Share]:
    if document.get("kind") == "canary":
        return [Share(document["version"], "canary", document["weight_bp"])]
    coverage = document.get("coverage_bp", 0)
    return [
        Share(variant["version"], variant["name"], variant["weight_bp"] * coverage // BUCKETS)
        for variant in document.get("variants", ())
    ]


def compare_versions(target: ModelVersion, stable: ModelVersion | None) -> Comparison:
    """Compare `target` to `stable`; without a stable version that side is empty."""
    return Comparison(
        metrics=_differences(stable.metrics if stable else {}, target.metrics),
        parameters=_differences(stable.parameters if stable else {}, target.parameters),
        inputs=_tensors(target, stable, "inputs"),
        outputs=_tensors(target, stable, "outputs"),
    )


def _differences(stable: Mapping[str, Any], target: Mapping[str, Any]) -> list[Difference]:
    names = sorted({*stable, *target})
    return [
        Difference(name, stable.get(name), target.get(name), _change(stable, target, name))
        for name in names
    ]


def _change(stable: Mapping[str, Any], target: Mapping[str, Any], name: str) -> float | None:
    values = stable.get(name), target.get(name)
    if not all(isinstance(value, int | float) for value in values):
        return None
    return float(target[name]) - float(stable[name])


def _tensors(target: ModelVersion, stable: ModelVersion | None, side: str) -> list[Difference]:
    sides = [
        {t["name"]: _describe(t) for t in version.signature.get(side, ())} if version else {}
        for version in (stable, target)
    ]
    return _differences(*sides)


def _describe(tensor: Mapping[str, Any]) -> str:
    sizes = ", ".join("∗" if size < 0 else str(size) for size in tensor["shape"])
    return f"{tensor['datatype']} [{sizes}]"
