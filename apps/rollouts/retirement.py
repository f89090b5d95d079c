"""Unloads versions that are no longer needed, in the only safe order: publish a table without the
version, wait for all acks, drain, unload. A version that may still get requests stays loaded.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from django.db import transaction

from apps.lib.actors import INTERLOCK
from apps.lib.clock import database_now
from apps.models.deployments import unload_deployment
from apps.models.models import Deployment, LiveSplit, RegisteredModel
from apps.models.services import change_deployment
from apps.models.states import DeploymentState
from apps.rollouts.fleet_status import unacked
from apps.rollouts.publication import publish_table
from apps.rollouts.version_usage import recently_requested_versions

log = logging.getLogger(__name__)

# A version that was just deployed, or just left a split, may be needed again soon.
RETIRE_AFTER = timedelta(minutes=10)
# Longer than any request timeout: requests in flight at the ack have ended.
DRAIN = timedelta(seconds=30)
REASON_MAX = 1_000


def needed_versions(now: datetime) -> set[int]:
    """Return the primary keys of the versions that must stay loaded."""
    needed: set[int] = set()
    rows = RegisteredModel.objects.values_list("stable", "previous_stable", "rollback_until")
    for stable, previous, rollback_until in rows:
        if stable is not None:
            needed.add(stable)
        if previous is not None and rollback_until is not None and rollback_until > now:
            needed.add(previous)
    for held in LiveSplit.objects.values_list("version_ids", flat=True):
        needed.update(held)
    return needed


def retire_versions() -> int:
    """Do one step for each deployment to unload; return how many changed state."""
    moved = _drain_unneeded()
    now = database_now()
    draining = Deployment.objects.filter(
        state=DeploymentState.DRAINING, changed_at__lt=now - DRAIN
    ).select_related("version__model", "cluster")
    for deployment in draining:
        behind = unacked(deployment.retired_generation or 0, now)
        if behind:
            waiting = "; ".join(f"instance {name}, which {reason}" for name, reason in behind)
            _set_reason(deployment, f"waiting for {waiting}")
        else:
            moved += _guarded_unload(deployment)
    return moved


def _set_reason(deployment: Deployment, reason: str) -> None:
    """Store why it is still loaded, without a transition."""
    rows = Deployment.objects.filter(pk=deployment.pk, revision=deployment.revision)
    rows.exclude(reason=reason).update(reason=reason[:REASON_MAX])


def _guarded_unload(deployment: Deployment) -> bool:
    """Unload one; its error, or one of its server, does not stop the others."""
    try:
        return unload_deployment(deployment)
    except Exception:
        log.exception("deployment.unload_failed %s", deployment)
        return False


@transaction.atomic
def _drain_unneeded() -> int:
    """Mark unneeded versions as draining and publish a table without them, in one transaction."""
    now = database_now()
    unneeded = list(
        Deployment.objects.select_for_update(of=("self",), skip_locked=True)
        .filter(
            state__in=[DeploymentState.READY, DeploymentState.FAILED],
            changed_at__lt=now - RETIRE_AFTER,
        )
        .exclude(version__in=needed_versions(now))
        .select_related("version__model", "cluster")
    )
    in_use = recently_requested_versions(now) if unneeded else set()
    unneeded = [d for d in unneeded if (d.version.model.name, d.version.number) not in in_use]
    for deployment in unneeded:
        change_deployment(deployment, DeploymentState.DRAINING, "no longer needed", INTERLOCK, now)
    if unneeded:
        names = ", ".join(str(deployment.version) for deployment in unneeded)
        generation = publish_table(reason=f"retired {names}", actor=INTERLOCK, now=now)
        Deployment.objects.filter(pk__in=[d.pk for d in unneeded]).update(
            retired_generation=generation
        )
    return len(unneeded)
