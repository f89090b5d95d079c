"""Reads of releases: how one stands is a question of its rollouts."""

from __future__ import annotations

from collections.abc import Iterable

from django.db.models import QuerySet

from apps.rollouts.models import Release
from apps.rollouts.states import LIVE_PHASES, Phase

# From the least advanced: a release is as far as the last of its models.
ORDER = (Phase.PENDING, Phase.PREPARING, Phase.PAUSED, Phase.BAKING, Phase.PROMOTING)
GOING_BACK = {Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.FAILED}


def find_releases() -> QuerySet[Release]:
    """Return the releases with what is shown of their rollouts, the newest first."""
    return Release.objects.prefetch_related(
        "rollouts__model", "rollouts__target__model", "rollouts__baseline", "rollouts__plan"
    ).order_by("-started_at", "id")


def state_of(release: Release) -> Phase:
    """Return the phase that the release as a whole is in."""
    return joint_phase(Phase(rollout.phase) for rollout in release.rollouts.all())


def joint_phase(phases: Iterable[Phase]) -> Phase:
    """Return the phase of all from those of each; one that goes back takes the others with it."""
    found = set(phases)
    if found & GOING_BACK:
        if found & LIVE_PHASES:
            return Phase.ROLLING_BACK
        return Phase.FAILED if found == {Phase.FAILED} else Phase.ROLLED_BACK
    return next((phase for phase in ORDER if phase in found), Phase.SUCCEEDED)
