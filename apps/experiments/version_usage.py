"""Which experiments need a version: those under way, and drafts that compare it."""

from __future__ import annotations

from apps.experiments.models import Variant
from apps.experiments.states import EXPERIMENT_TRANSITIONS
from apps.models.models import ModelVersion, RegisteredModel
from apps.rollouts import version_usage


def register() -> None:
    """Have rollouts ask us before a version is taken away."""
    version_usage.add_finder(needs_of)


def needs_of(model: RegisteredModel, version: ModelVersion | None) -> list[str]:
    """Return the experiments that compare the version, or any version of the model (None)."""
    variants = Variant.objects.filter(
        experiment__model=model, experiment__state__in=EXPERIMENT_TRANSITIONS.live
    )
    if version is not None:
        variants = variants.filter(version=version)
    found = variants.order_by("experiment__name").values_list(
        "experiment__name", "experiment__state"
    )
    return [f"experiment {name} compares it ({state})" for name, state in found.distinct()]
