"""Reconciles the model servers with the deployments: one bounded, repeatable step at a time.

It probes instead of relying on state: a `ready` deployment must answer a real request every few
seconds or is loaded again (a crashed Triton process still reports READY). Each step runs under a
lease, outside any transaction, and writes its result by compare-and-set.
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
    """Run one step for each due deployment; return the number of steps."""
    now = database_now()
    due = Deployment.objects.filter(
        Q(leased_until=None) | Q(leased_until__lt=now), state__in=STEPS
    ).select_related("version__model", "cluster")
    count = 0
    for deployment in due.order_by("state", "changed_at"):
        if _take_lease(deployment, now):
            count += 1
            _guarded_step(deployment)
    return count


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
    """Run the step for the state of the deployment, and always schedule the next one."""
    try:
        pause = STEPS[State(deployment.state)](deployment)
    except Conflict:
        # It was changed meanwhile; the next tick reads the new state.
        pause = timedelta(0)
    except Exception as error:
        log.exception("deployment.step_failed %s", deployment)
        _set_reason(deployment, f"will be retried: {type(error).__name__}: {error}"[:REASON_MAX])
        pause = RETRY_AFTER
    _schedule(deployment, pause)


def _schedule(deployment: Deployment, pause: timedelta) -> None:
    Deployment.objects.filter(pk=deployment.pk, revision=deployment.revision).update(
        leased_until=database_now() + pause
    )


def _set_reason(deployment: Deployment, reason: str) -> None:
    """Show the reason on the page, without a transition."""
    Deployment.objects.filter(pk=deployment.pk, revision=deployment.revision).update(reason=reason)


# --- every endpoint of a cluster -----------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """The results of one action on the endpoints of a cluster."""

    answered: list[Endpoint] = field(default_factory=list)
    away: list[str] = field(default_factory=list)
    refused: list[tuple[Endpoint, str]] = field(default_factory=list)

    @property
    def refusal(self) -> str:
        """Triton's error messages, with the endpoint if there are several."""
        if len(self.answered) + len(self.away) + len(self.refused) == 1:
            return self.refused[0][1] if self.refused else ""
        return "; ".join(f"{endpoint.url}: {reason}" for endpoint, reason in self.refused)

    @property
    def absence(self) -> str:
        """The endpoints that cannot be reached."""
        return "; ".join(self.away) or "the cluster has no endpoints"


def _on_each(deployment: Deployment, action: Callable[[Endpoint], None]) -> Round:
    """Run `action` on every endpoint; a failure on one does not stop the others."""
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
            # An unexpected response or a malformed address does not stop the other endpoints.
            log.exception("deployment.endpoint_failed %s %s", deployment, endpoint.url)
            done.away.append(f"{endpoint.url}: {type(error).__name__}: {error}"[:REASON_MAX])
        else:
            done.answered.append(endpoint)
    return done


def _extend_lease(deployment: Deployment) -> None:
    """Extend the lease: a large model takes minutes on each endpoint."""
    if State(deployment.state) in STEPS:
        _schedule(deployment, LEASE)


# --- load and warm up ----------------------------------------------------------------------------


def _load(deployment: Deployment) -> timedelta:
    if pause := _fail_if_late(deployment):
        return pause
    try:
        done = _load_everywhere(deployment)
    except Unavailable as error:
        _set_reason(deployment, f"waiting to load: {error.message}")
        return RETRY_AFTER
    if done.refused:
        return _fail(deployment, done.refusal)
    if done.away or not done.answered:
        _set_reason(deployment, f"waiting to load: {done.absence}")
        return RETRY_AFTER
    change_deployment(deployment, State.WARMING, "loaded", INTERLOCK, database_now())
    return _warm(deployment)


def _fail_if_late(deployment: Deployment) -> timedelta | None:
    """Fail a deployment that was never ready and exceeds its deadline; None if it may go on.

    One that was ready before has no deadline: its servers are down and will return.
    """
    events = DeploymentEvent.objects.filter(deployment=deployment)
    loading = events.filter(to_state=State.LOADING).order_by("-id").values_list("at", flat=True)
    began_at = loading.first() or deployment.changed_at
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
    """Place the version if needed and load it on each endpoint. Raises Unavailable."""
    version, cluster = deployment.version, deployment.cluster
    if not is_placed(version, cluster):
        place_version(version, cluster, placed_backend(version, cluster))
    done = _on_each(deployment, lambda endpoint: endpoint.load(version))
    if any(falls_back_to_python(version, cluster, reason) for _, reason in done.refused):
        log.info("deployment.python_backend %s: %s", deployment, done.refusal)
        place_version(version, cluster, PYTHON)
        done = _on_each(deployment, lambda endpoint: endpoint.load(version))
    return done


def _warm(deployment: Deployment) -> timedelta:
    """Run the warm-up requests on every endpoint before the first request of a user."""
    if pause := _fail_if_late(deployment):
        return pause
    version = deployment.version
    requests = version.warmup or [None] * WARMUP_REQUESTS

    def answer(endpoint: Endpoint) -> None:
        for request in requests:
            endpoint.answer(version, request)

    done = _on_each(deployment, answer)
    if done.refused:
        return _fail(deployment, f"warm-up failed: {done.refusal}")
    if done.away or not done.answered:
        _set_reason(deployment, f"waiting to warm up: {done.absence}")
        return RETRY_AFTER
    change_deployment(
        deployment, State.READY, f"answered {len(requests)} requests", INTERLOCK, database_now()
    )
    return PROBE_EVERY


def _fail(deployment: Deployment, reason: str) -> timedelta:
    log.warning("deployment.failed %s: %s", deployment, reason)
    change_deployment(deployment, State.FAILED, reason, INTERLOCK, database_now())
    return RETRY_AFTER


# --- probe and repair ----------------------------------------------------------------------------


def _probe(deployment: Deployment) -> timedelta:
    """Request a prediction from a ready version on each endpoint; repair it where that fails.

    While other endpoints answer, only the failed one is reloaded: the others serve users. A server
    that is down reloads its models when it starts; meanwhile the data plane's breaker covers.
    """
    version = deployment.version
    request = version.warmup[0] if version.warmup else None
    done = _on_each(deployment, lambda endpoint: endpoint.answer(version, request))
    if done.refused and not done.answered:
        return _load_again(deployment, done)
    reasons = [_repair(deployment, endpoint, cause, request) for endpoint, cause in done.refused]
    if done.away:
        reasons.append(f"{CANNOT_BE_PROBED}: {done.absence}")
    if not reasons and not is_placed(version, deployment.cluster):
        reasons.append(_reload_changed(deployment))
    if reasons or deployment.reason.startswith(CANNOT_BE_PROBED):
        _set_reason(deployment, "; ".join(reasons) or "answers on every endpoint again")
    return PROBE_EVERY


def _load_again(deployment: Deployment, done: Round) -> timedelta:
    log.warning("deployment.lost %s: %s", deployment, done.refusal)
    for endpoint, _ in done.refused:
        _unload_quietly(deployment, endpoint)
    lost = f"lost: {done.refusal}"
    change_deployment(deployment, State.LOADING, lost, INTERLOCK, database_now())
    return timedelta(0)


def _repair(deployment: Deployment, endpoint: Endpoint, cause: str, request: Request | None) -> str:
    """Reload a version on the endpoint that lost it; return the reason to show."""
    log.warning("deployment.lost %s on %s: %s", deployment, endpoint.url, cause)
    _extend_lease(deployment)
    # A crashed process is replaced only if the version is unloaded first.
    _unload_quietly(deployment, endpoint)
    try:
        endpoint.load(deployment.version)
        endpoint.answer(deployment.version, request)
    except (Unavailable, TritonRefused) as error:
        return f"{CANNOT_BE_PROBED}: {endpoint.url} lost it ({cause}): {error.message}"
    return f"loaded again on {endpoint.url}, which had lost it: {cause}"


def _reload_changed(deployment: Deployment) -> str:
    """Reload a version after a change of its configuration; return the reason to show.

    Triton serves during the reload, and keeps the previous configuration if the reload fails.
    """
    try:
        done = _load_everywhere(deployment)
    except Unavailable as error:
        return f"serves with its previous configuration: {error.message}"
    if done.refused or done.away:
        return f"serves with its previous configuration: {done.refusal or done.absence}"
    return "loaded with its changed configuration"


def _unload_quietly(deployment: Deployment, endpoint: Endpoint) -> None:
    try:
        endpoint.unload(deployment.version)
    except (Unavailable, TritonRefused) as error:
        log.info("deployment.unload %s: %s", deployment, error.message)


def unload_deployment(deployment: Deployment) -> bool:
    """Unload a drained version from its servers; return whether it is gone from all of them.

    The caller must ensure that no live instance routes to it any more.
    """
    unloaded = []

    def unload(endpoint: Endpoint) -> None:
        if not endpoint.is_unloaded(deployment.version):
            # It may have been placed again since the caller checked.
            _check_unchanged(deployment)
            endpoint.unload(deployment.version)
        unloaded.append(endpoint.is_unloaded(deployment.version))

    try:
        done = _on_each(deployment, unload)
    except Conflict:
        return False
    if done.refused or done.away:
        _set_reason(deployment, f"waiting to unload: {done.refusal or done.absence}")
        return False
    if not all(unloaded):
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
