"""Tells a rollout in words, from its own rows."""

from __future__ import annotations

from apps.rollouts.models import Evaluation, Rollout


def latest_checks(rollout: Rollout) -> list[Evaluation]:
    """Return the last answer of each check, by name."""
    rows = rollout.evaluations.order_by("check_name", "-id").distinct("check_name")
    return list(rows)


def summarise(rollout: Rollout) -> str:
    """Return one sentence: what, from where, to where, and why it stands where it stands."""
    source = f" from {rollout.baseline}" if rollout.baseline else ""
    what = {
        Rollout.Kind.CANARY: f"Canary rollout of {rollout.target}{source}",
        Rollout.Kind.FIRST: f"First rollout of {rollout.model.name}, to {rollout.target}",
        Rollout.Kind.ROLLBACK: f"Instant rollback to {rollout.target}{source}",
    }[Rollout.Kind(rollout.kind)]
    share = f" at {rollout.weight_bp / 100:g} %" if rollout.is_live else ""
    return f"{what}: {rollout.phase.replace('_', ' ')}{share}. {rollout.reason}."
