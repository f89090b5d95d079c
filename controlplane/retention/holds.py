"""Holds: rows that live rollouts and running experiments still need, whatever their age."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Q

from apps.experiments.models import Experiment
from apps.experiments.states import ExperimentState
from apps.rollouts.models import Rollout
from apps.rollouts.plans import from_json
from apps.rollouts.states import LIVE_PHASES


@dataclass(frozen=True)
class Hold:
    """Rows since `since` must stay, with the reason; None: no rows are held."""

    since: datetime | None = None
    why: str = ""

    def cut(self, cutoff: datetime) -> datetime:
        """Return the time before which rows may be deleted."""
        return cutoff if self.since is None else min(cutoff, self.since)

    def reason(self, cutoff: datetime) -> str:
        """Return why rows older than the cutoff are held, or "" if none are."""
        return self.why if self.since is not None and self.since < cutoff else ""


def live_rollouts() -> Hold:
    """Hold rows since the start of the oldest live rollout."""
    oldest = Rollout.objects.filter(phase__in=LIVE_PHASES).order_by("started_at").first()
    if oldest is None:
        return Hold()
    return Hold(oldest.started_at, f"the rollout of {oldest.target} is live")


def outcomes_in_use() -> Hold:
    """Hold outcomes that experiments and rollouts may still count, covariate periods included."""
    holds = [*_of_experiments(), *_of_rollouts()]
    return min(holds, key=lambda hold: hold.since or datetime.max, default=Hold())


def _of_experiments() -> list[Hold]:
    # An ended experiment with a due refresh is analysed once more.
    is_running = Q(state__in=[ExperimentState.RUNNING, ExperimentState.PAUSED])
    rows = Experiment.objects.filter(is_running | Q(refresh_due_at__isnull=False))
    return [
        Hold(
            (row.started_at or row.created_at) - timedelta(seconds=row.covariate_s),
            f"experiment {row.name} is in progress",
        )
        for row in rows.defer("result")
    ]


def _of_rollouts() -> list[Hold]:
    holds = []
    for rollout in Rollout.objects.filter(phase__in=LIVE_PHASES).select_related("target__model"):
        plan = from_json(rollout.plan_document) if rollout.plan_document else None
        checks = [check for step in plan.steps for check in step.check_documents] if plan else []
        before_s = max((int(each.settings.get("covariate_s") or 0) for each in checks), default=0)
        since = rollout.started_at - timedelta(seconds=before_s)
        holds.append(Hold(since, f"the rollout of {rollout.target} is live"))
    return holds
