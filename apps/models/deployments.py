"""Makes the servers hold what the deployments say: one bounded, repeatable step at a time.

It probes and never remembers: a `ready` deployment answers a real request every few seconds or is
loaded again (a crashed Triton process still reports READY). A deployment is worked on under a
lease, outside any transaction; the result is written by compare-and-set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Q

from apps.lib.actors import INTERLOCK
from apps.lib.clock import database_now
from apps.lib.errors import Conflict, Unavailable
from apps.models.models import Deployment, DeploymentEvent
from apps.models.repository import (
    PYTHON,
    falls_back_to_python,
    is_placed,
    place_version,
    placed_backend,
    remove_version,
)
from apps.models.services import change_deployment
from apps.models.states import DeploymentState as State
from apps.models.triton import Endpoint, TritonRefused, endpoints_of
from apps.models.warmup import Request

log = logging.getLogger(__name__)

LEASE = timedelta(seconds=300)
PROBE_EVERY = timedelta(seconds=5)
RETRY_AFTER = timedelta(seconds=2)
WARMUP_REQUESTS = 3
REASON_MAX = 1_000
CANNOT_BE_PROBED = "cannot be probed"


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
    except Exception as error:
        log.exception("deployment.step_failed %s", deployment)
        _say(deployment, f"tried again soon: {type(error).__name__}: {error}"[:REASON_MAX])
        pause = RETRY_AFTER
    _look_again(deployment, pause)


def _look_again(deployment: Deployment, pause: timedelta) -> None:
    Deployment.objects.filter(pk=deployment.pk, revision=deployment.revision).update(
        leased_until=database_now() + pause
    )


def _say(deployment: Deployment, reason: str) -> None:
    """Tell on the page why nothing moves, without a transition."""
    Deployment.objects.filter(pk=deployment.pk, revision=deployment.revision).update(reason=reason)


# --- every endpoint of a cluster -----------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """What one action came to on the endpoints of a cluster."""

    answered: list[Endpoint] = field(default_factory=list)
    away: list[str] = field(default_factory=list)
    refused: list[tuple[Endpoint, str]] = field(default_factory=list)

    @property
    def refusal(self) -> str:
        """What was refused, in Triton's words; with which endpoint where there are several."""
        if len(self.answered) + len(self.away) + len(self.refused) == 1:
            return self.refused[0][1] if self.refused else ""
        return "; ".join(f"{endpoint.url}: {told}" for endpoint, told in self.refused)

    @property
    def absence(self) -> str:
        """Which endpoints cannot be reached."""
        return "; ".join(self.away) or "the cluster has no endpoints"


def _on_each(deployment: Deployment, action: Callable[[Endpoint], None]) -> Round:
    """Do `action` on every endpoint, whatever becomes of it on another one."""
    done = Round()
    for endpoint in endpoints_of(deployment.cluster):
        _extend_lease(deployment)
        try:
            action(endpoint)
        except Unavailable as error:
            done.away.append(error.message)
        except TritonRefused as error:
            done.refused.append((endpoint, error.message))
        except Conflict:
            raise
        except Exception as error:
            # Whatever one endpoint answers, or is written as, the others are asked.
            log.exception("deployment.endpoint_failed %s %s", deployment, endpoint.url)
            done.away.append(f"{endpoint.url}: {type(error).__name__}: {error}"[:REASON_MAX])
        else:
            done.answered.append(endpoint)
    return done


def _extend_lease(deployment: Deployment) -> None:
    """Keep the lease: a large model takes minutes on each endpoint."""
    if State(deployment.state) in STEPS:
        _look_again(deployment, LEASE)


# --- getting it ready ----------------------------------------------------------------------------


def _load(deployment: Deployment) -> timedelta:
    if late := _is_late(deployment):
        return late
    try:
        done = _load_everywhere(deployment)
    except Unavailable as error:
        _say(deployment, f"waiting to load: {error.message}")
        return RETRY_AFTER
    if done.refused:
        return _fail(deployment, done.refusal)
    if done.away or not done.answered:
        _say(deployment, f"waiting to load: {done.absence}")
        return RETRY_AFTER
    change_deployment(deployment, State.WARMING, "loaded", INTERLOCK, database_now())
    return _warm(deployment)


def _is_late(deployment: Deployment) -> timedelta | None:
    """Fail a version that was never ready and does not become so in time; None: it still may.

    One that was ready once is waited for without an end: its servers are away, and come back.
    """
    events = DeploymentEvent.objects.filter(deployment=deployment)
    placed = events.filter(to_state=State.LOADING).order_by("-id").values_list("at", flat=True)
    began_at = placed.first() or deployment.changed_at
    if database_now() - began_at < timedelta(seconds=settings.DEPLOY_WITHIN_S):
        return None
    if events.filter(to_state=State.READY).exists():
        return None
    for endpoint in endpoints_of(deployment.cluster):
        _unload_quietly(deployment, endpoint)
    waited = f" ({deployment.reason})" if deployment.reason else ""
    limit = f"{settings.DEPLOY_WITHIN_S} s (INTERLOCK_DEPLOY_WITHIN_S)"
    return _fail(deployment, f"it was not ready within {limit}{waited}")


def _load_everywhere(deployment: Deployment) -> Round:
    """Place the version where it is not, and have each endpoint load it. Raises Unavailable."""
    version, cluster = deployment.version, deployment.cluster
    if not is_placed(version, cluster):
        place_version(version, cluster, placed_backend(version, cluster))
    done = _on_each(deployment, lambda endpoint: endpoint.load(version))
    if any(falls_back_to_python(version, cluster, told) for _, told in done.refused):
        log.info("deployment.python_backend %s: %s", deployment, done.refusal)
        place_version(version, cluster, PYTHON)
        done = _on_each(deployment, lambda endpoint: endpoint.load(version))
    return done


def _warm(deployment: Deployment) -> timedelta:
    """Answer real requests on every endpoint before the first user's request gets there."""
    if late := _is_late(deployment):
        return late
    version = deployment.version
    requests = version.warmup or [None] * WARMUP_REQUESTS

    def answer(endpoint: Endpoint) -> None:
        for request in requests:
            endpoint.answer(version, request)

    done = _on_each(deployment, answer)
    if done.refused:
        return _fail(deployment, f"warm-up failed: {done.refusal}")
    if done.away or not done.answered:
        _say(deployment, f"waiting to warm up: {done.absence}")
        return RETRY_AFTER
    change_deployment(
        deployment, State.READY, f"answered {len(requests)} requests", INTERLOCK, database_now()
    )
    return PROBE_EVERY


def _fail(deployment: Deployment, reason: str) -> timedelta:
    log.warning("deployment.failed %s: %s", deployment, reason)
    change_deployment(deployment, State.FAILED, reason, INTERLOCK, database_now())
    return RETRY_AFTER


# --- keeping it ready ----------------------------------------------------------------------------


def _probe(deployment: Deployment) -> timedelta:
    """Ask a ready version for a prediction on each endpoint; heal it where it does not answer.

    Where other endpoints answer, only the one that lost it is touched: users are being served by
    those. A server that is away comes back with all it held; the data plane's breaker covers.
    """
    version = deployment.version
    request = version.warmup[0] if version.warmup else None
    done = _on_each(deployment, lambda endpoint: endpoint.answer(version, request))
    if done.refused and not done.answered:
        return _load_again(deployment, done)
    told = [_heal(deployment, endpoint, why, request) for endpoint, why in done.refused]
    if done.away:
        told.append(f"{CANNOT_BE_PROBED}: {done.absence}")
    if not told and not is_placed(version, deployment.cluster):
        told.append(_renew(deployment))
    if told or deployment.reason.startswith(CANNOT_BE_PROBED):
        _say(deployment, "; ".join(told) or "answers on every endpoint again")
    return PROBE_EVERY


def _load_again(deployment: Deployment, done: Round) -> timedelta:
    log.warning("deployment.lost %s: %s", deployment, done.refusal)
    for endpoint, _ in done.refused:
        _unload_quietly(deployment, endpoint)
    lost = f"lost: {done.refusal}"
    change_deployment(deployment, State.LOADING, lost, INTERLOCK, database_now())
    return timedelta(0)


def _heal(deployment: Deployment, endpoint: Endpoint, why: str, request: Request | None) -> str:
    """Load a version anew where it was lost; return what to tell about it."""
    log.warning("deployment.lost %s on %s: %s", deployment, endpoint.url, why)
    _extend_lease(deployment)
    # A crashed process is replaced only if the version is unloaded first.
    _unload_quietly(deployment, endpoint)
    try:
        endpoint.load(deployment.version)
        endpoint.answer(deployment.version, request)
    except (Unavailable, TritonRefused) as error:
        return f"{CANNOT_BE_PROBED}: {endpoint.url} lost it ({why}): {error.message}"
    return f"loaded again on {endpoint.url}, which had lost it: {why}"


def _renew(deployment: Deployment) -> str:
    """Take over a changed batch size or setting. Triton serves on while it loads the version anew,
    and with what it had when it cannot."""
    try:
        done = _load_everywhere(deployment)
    except Unavailable as error:
        return f"serves as before: {error.message}"
    if done.refused or done.away:
        return f"serves as before: {done.refusal or done.absence}"
    return "loaded with its changed configuration"


def _unload_quietly(deployment: Deployment, endpoint: Endpoint) -> None:
    try:
        endpoint.unload(deployment.version)
    except (Unavailable, TritonRefused) as error:
        log.info("deployment.unload %s: %s", deployment, error.message)


def unload_deployment(deployment: Deployment) -> bool:
    """Take a drained version off its servers. True when it is gone from all of them.

    The caller has made sure that no live instance routes to it any more.
    """
    gone = []

    def unload(endpoint: Endpoint) -> None:
        if not endpoint.is_unloaded(deployment.version):
            # Somebody may have placed it again since the caller looked.
            _check_unchanged(deployment)
            endpoint.unload(deployment.version)
        gone.append(endpoint.is_unloaded(deployment.version))

    try:
        done = _on_each(deployment, unload)
    except Conflict:
        return False
    if done.refused or done.away:
        _say(deployment, f"waiting to unload: {done.refusal or done.absence}")
        return False
    if not all(gone):
        return False
    remove_version(deployment.version, deployment.cluster)
    change_deployment(deployment, State.ABSENT, "unloaded", INTERLOCK, database_now())
    return True


def _check_unchanged(deployment: Deployment) -> None:
    if not Deployment.objects.filter(pk=deployment.pk, revision=deployment.revision).exists():
        raise Conflict(f"{deployment} changed meanwhile")


STEPS: dict[State, Callable[[Deployment], timedelta]] = {
    State.LOADING: _load,
    State.WARMING: _warm,
    State.READY: _probe,
}
