"""What is still needed, however old it is: by live rollouts, and by experiments that go on."""

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
    """Nothing since then may go, and why; None: nothing is held."""

    since: datetime | None = None
    why: str = ""

    def cut(self, cutoff: datetime) -> datetime:
        """Return until when rows may go."""
        return cutoff if self.since is None else min(cutoff, self.since)

    def told(self, cutoff: datetime) -> str:
        """Return why less goes than the setting says, or nothing."""
        return self.why if self.since is not None and self.since < cutoff else ""


def live_rollouts() -> Hold:
    """Hold what is since the start of the oldest live rollout."""
    oldest = Rollout.objects.filter(phase__in=LIVE_PHASES).order_by("started_at").first()
    if oldest is None:
        return Hold()
    return Hold(oldest.started_at, f"the rollout of {oldest.target} is live")


def who_counts_outcomes() -> Hold:
    """Hold outcomes that experiments and rollouts may still count, with what came before units."""
    holds = [*_of_experiments(), *_of_rollouts()]
    return min(holds, key=lambda hold: hold.since or datetime.max, default=Hold())


def _of_experiments() -> list[Hold]:
    # One that ended is analysed once more.
    goes_on = Q(state__in=[ExperimentState.RUNNING, ExperimentState.PAUSED])
    rows = Experiment.objects.filter(goes_on | Q(refresh_due_at__isnull=False))
    return [
        Hold(
            (row.started_at or row.created_at) - timedelta(seconds=row.covariate_s),
            f"experiment {row.name} goes on",
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
