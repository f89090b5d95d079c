"""Makes the servers hold what the deployments say: one bounded, repeatable step at a time.

It probes and never remembers: a `ready` deployment answers a real request every few seconds or is
loaded again (a crashed Triton process still reports READY). A deployment is worked on under a
lease, outside any transaction; the result is written by compare-and-set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from django.db.models import Q

from apps.lib.actors import INTERLOCK
from apps.lib.clock import database_now
from apps.lib.errors import Conflict, Unavailable
from apps.models.models import Deployment
from apps.models.repository import place_version, remove_version
from apps.models.services import change_deployment
from apps.models.states import DeploymentState as State
from apps.models.triton import TritonRefused, endpoints_of

log = logging.getLogger(__name__)

LEASE = timedelta(seconds=300)
PROBE_EVERY = timedelta(seconds=5)
RETRY_AFTER = timedelta(seconds=2)
WARMUP_REQUESTS = 3


def reconcile_deployments() -> int:
    """Do one step on each deployment that is due; return how many were worked on."""
    now = database_now()
    due = Deployment.objects.filter(
        Q(leased_until=None) | Q(leased_until__lt=now), state__in=STEPS
    ).select_related("version__model", "cluster")
    worked = 0
    for deployment in due.order_by("state", "changed_at"):
        if _take_lease(deployment, now):
            worked += 1
            _guarded_step(deployment)
    return worked


def _take_lease(deployment: Deployment, now: datetime) -> bool:
    return (
        Deployment.objects.filter(
            Q(leased_until=None) | Q(leased_until__lt=now),
            pk=deployment.pk,
            revision=deployment.revision,
        ).update(leased_until=now + LEASE)
        == 1
    )


def _guarded_step(deployment: Deployment) -> None:
    """Do the step of the deployment's state; whatever happens, set when it is looked at next."""
    try:
        pause = STEPS[State(deployment.state)](deployment)
    except Conflict:
        # Somebody changed it meanwhile; the next tick reads the new state.
        pause = timedelta(0)
    except Exception:
        log.exception("deployment.step_failed %s", deployment)
        pause = RETRY_AFTER
    _look_again(deployment, pause)


def _look_again(deployment: Deployment, pause: timedelta) -> None:
    Deployment.objects.filter(pk=deployment.pk, revision=deployment.revision).update(
        leased_until=database_now() + pause
    )


def _say(deployment: Deployment, reason: str) -> None:
    """Tell on the page why nothing moves, without a transition."""
    Deployment.objects.filter(pk=deployment.pk, revision=deployment.revision).update(reason=reason)


def _load(deployment: Deployment) -> timedelta:
    try:
        place_version(deployment.version, deployment.cluster)
        for endpoint in endpoints_of(deployment.cluster):
            endpoint.load(deployment.version)
    except Unavailable as error:
        _say(deployment, f"waiting to load: {error.message}")
        return RETRY_AFTER
    except TritonRefused as error:
        return _fail(deployment, error.message)
    change_deployment(deployment, State.WARMING, "loaded", INTERLOCK, database_now())
    return _warm(deployment)


def _warm(deployment: Deployment) -> timedelta:
    """Answer real requests on every endpoint before the first user's request gets there."""
    requests = deployment.version.warmup or [None] * WARMUP_REQUESTS
    try:
        for endpoint in endpoints_of(deployment.cluster):
            for request in requests:
                endpoint.answer(deployment.version, request)
    except Unavailable as error:
        _say(deployment, f"waiting to warm up: {error.message}")
        return RETRY_AFTER
    except TritonRefused as error:
        return _fail(deployment, f"warm-up failed: {error.message}")
    change_deployment(
        deployment, State.READY, f"answered {len(requests)} requests", INTERLOCK, database_now()
    )
    return PROBE_EVERY


def _fail(deployment: Deployment, reason: str) -> timedelta:
    log.warning("deployment.failed %s: %s", deployment, reason)
    change_deployment(deployment, State.FAILED, reason, INTERLOCK, database_now())
    return RETRY_AFTER


def _probe(deployment: Deployment) -> timedelta:
    """Ask a ready version for a prediction; heal it by unload and load where it does not answer."""
    for endpoint in endpoints_of(deployment.cluster):
        try:
            endpoint.answer(deployment.version)
        except Unavailable as error:
            # A server that is away comes back with all it held; the data plane's breaker covers.
            _say(deployment, f"cannot be probed: {error.message}")
            return PROBE_EVERY
        except TritonRefused as error:
            log.warning("deployment.lost %s: %s", deployment, error.message)
            _unload_quietly(deployment)
            change_deployment(
                deployment, State.LOADING, f"lost: {error.message}", INTERLOCK, database_now()
            )
            return timedelta(0)
    return PROBE_EVERY


def _unload_quietly(deployment: Deployment) -> None:
    for endpoint in endpoints_of(deployment.cluster):
        try:
            endpoint.unload(deployment.version)
        except (Unavailable, TritonRefused) as error:
            log.info("deployment.unload %s: %s", deployment, error.message)


def unload_deployment(deployment: Deployment) -> bool:
    """Take a drained version off its servers. True when it is gone from all of them.

    The caller has made sure that no live instance routes to it any more.
    """
    try:
        for endpoint in endpoints_of(deployment.cluster):
            if not endpoint.is_unloaded(deployment.version):
                endpoint.unload(deployment.version)
                if not endpoint.is_unloaded(deployment.version):
                    return False
    except (Unavailable, TritonRefused) as error:
        _say(deployment, f"waiting to unload: {error.message}")
        return False
    remove_version(deployment.version, deployment.cluster)
    change_deployment(deployment, State.ABSENT, "unloaded", INTERLOCK, database_now())
    return True


STEPS: dict[State, Callable[[Deployment], timedelta]] = {
    State.LOADING: _load,
    State.WARMING: _warm,
    State.READY: _probe,
}
