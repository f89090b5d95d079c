"""Reads of releases. The state of a release is derived from its rollouts."""

from __future__ import annotations

from collections.abc import Iterable

from django.db.models import QuerySet

from apps.rollouts.models import Release
from apps.rollouts.states import LIVE_PHASES, Phase

# From the least advanced phase: a release has the phase of its least advanced model.
ORDER = (Phase.PENDING, Phase.PREPARING, Phase.PAUSED, Phase.BAKING, Phase.PROMOTING)
ROLLED_BACK_PHASES = {Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.FAILED}


def find_releases() -> QuerySet[Release]:
    """Return the releases with their rollouts, newest first."""
    return Release.objects.prefetch_related(
        "rollouts__model", "rollouts__target__model", "rollouts__baseline", "rollouts__plan"
    ).order_by("-started_at", "id")


def state_of(release: Release) -> Phase:
    """Return the joint phase of the release."""
    return joint_phase(Phase(rollout.phase) for rollout in release.rollouts.all())


def joint_phase(phases: Iterable[Phase]) -> Phase:
    """Return the joint phase: the rollback of one is the rollback of all."""
    distinct = set(phases)
    if distinct & ROLLED_BACK_PHASES:
        if distinct & LIVE_PHASES:
            return Phase.ROLLING_BACK
        return Phase.FAILED if distinct == {Phase.FAILED} else Phase.ROLLED_BACK
    return next((phase for phase in ORDER if phase in distinct), Phase.SUCCEEDED)
