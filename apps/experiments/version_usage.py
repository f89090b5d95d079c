"""Find the experiments that use a version: live ones, and drafts."""

from __future__ import annotations

from apps.experiments.models import Variant
from apps.experiments.states import EXPERIMENT_TRANSITIONS
from apps.models.models import ModelVersion, RegisteredModel
from apps.rollouts import version_usage


def register() -> None:
    """Register the finder that is queried before a version is removed."""
    version_usage.add_finder(needs_of)


def needs_of(model: RegisteredModel, version: ModelVersion | None) -> list[str]:
    """Describe the experiments that use the version, or any version of the model (None)."""
    variants = Variant.objects.filter(
        experiment__model=model, experiment__state__in=EXPERIMENT_TRANSITIONS.live
    )
    if version is not None:
        variants = variants.filter(version=version)
    rows = variants.order_by("experiment__name").values_list(
        "experiment__name", "experiment__state"
    )
    return [f"experiment {name} compares it ({state})" for name, state in rows.distinct()]
