"""Brings what checks are answered from besides the intervals of traffic.

Two sorts: what our own tables hold is read inside the tick's transaction; services outside are
asked before it, without any lock, so that a slow one holds up no abort.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db.models import Sum

from apps.rollouts import check_kinds as kinds
from apps.rollouts.analysis import Observation
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.models import Rollout, TelemetryRow
from apps.rollouts.plans import from_json
from apps.rollouts.selectors.shadows import COUNTS, shadow_agreement
from contract.routing import EXPLICIT

Observe = Callable[[Rollout, CheckDocument, datetime], Observation]


@dataclass(frozen=True)
class Asked:
    """What services outside answered for one step of a rollout, by the check's label."""

    step_index: int
    answers: Mapping[str, Observation]


def ask_services(rollouts: Sequence[Rollout], now: datetime) -> dict[UUID, Asked]:
    """Ask for all checks of `rollouts` that are due; those without such checks are left out."""
    return {}


def has_answers(rollout: Rollout, asked: Asked | None) -> bool:
    """Say whether what the step has to ask outside was asked, for this very step."""
    step = from_json(rollout.plan_document).steps[rollout.step_index]
    if not any(check.check in SERVICES for check in step.questions):
        return True
    return asked is not None and asked.step_index == rollout.step_index


def observe_database(
    rollout: Rollout, checks: Sequence[CheckDocument], now: datetime
) -> dict[str, Observation]:
    """Return what our tables hold for the step's checks, by their labels."""
    return {
        check.label: DATABASE[check.check](rollout, check, now)
        for check in checks
        if check.check in DATABASE
    }


def _smoke(rollout: Rollout, _: CheckDocument, now: datetime) -> Observation:
    """Requests that named the target by its number, since the rollout's first table."""
    rows = TelemetryRow.objects.filter(
        model_name=rollout.model.name,
        version_number=str(rollout.target.number),
        variant=EXPLICIT,
        ended_at__gte=rollout.started_at,
        ended_at__lte=now,
    )
    sums = rows.aggregate(requests=Sum("requests"), errors=Sum("errors"))
    return {"requests": sums["requests"] or 0, "errors": sums["errors"] or 0}


def _shadow(rollout: Rollout, _: CheckDocument, now: datetime) -> Observation:
    """How copies of this step were answered."""
    found = shadow_agreement(
        str(rollout.pk),
        since=rollout.started_at,
        until=now,
        generation_min=rollout.step_generations[-1],
    )
    return {name: getattr(found, name) for name in (*COUNTS, "largest_difference")}


DATABASE: dict[str, Observe] = {
    kinds.SMOKE: _smoke,
    kinds.SHADOW_AGREEMENT: _shadow,
}
# Checks that are answered by a service outside.
SERVICES = {kinds.PROMETHEUS, kinds.WEBHOOK}
