"""Gathers the observations of checks that are not judged from intervals of traffic.

Our own tables are read inside the tick's transaction. External services are queried before it,
without any lock, so that a slow one delays no abort.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import UUID, uuid5

import msgspec
from django.conf import settings
from django.db.models import IntegerField, Q, Sum
from django.db.models.fields.json import KT
from django.db.models.functions import Cast, Coalesce

from apps.models.internal_hosts import egress_policy
from apps.rollouts import check_kinds as kinds
from apps.rollouts.analysis import Observation
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.models import Rollout, TelemetryRow
from apps.rollouts.plans import from_json
from apps.rollouts.prometheus import fill_query, query_prometheus
from apps.rollouts.provider_client import ProviderError
from apps.rollouts.selectors.shadows import COUNTS, shadow_agreement
from apps.rollouts.states import Phase
from apps.rollouts.webhooks import call_webhook, signed_headers
from contract.routing import EXPLICIT

log = logging.getLogger(__name__)

# The longest time that all services together may delay a tick.
QUERIES_S = 4.0
THREADS_MAX = 32

# The ends of requests that the version left without an answer; see the contract's Ends.
WITHOUT_ANSWER = ("failed", "fell_back", "expired", "shed", "abandoned", "bypassed")

Observe = Callable[[Rollout, CheckDocument, datetime], Observation]


@dataclass(frozen=True)
class ServiceObservations:
    """The observations of external services for one step of a rollout, by check label."""

    step_index: int
    observations: Mapping[str, Observation]


# Returns an observation or raises ProviderError, within a time limit. Runs in a thread, and so must
# not use the database.
Fetch = Callable[[], Observation]


@dataclass(frozen=True)
class ServiceQuery:
    """The query of an external service for one check of a rollout's step."""

    rollout_id: UUID
    step_index: int
    label: str
    fetch: Fetch


def query_services(rollouts: Sequence[Rollout], now: datetime) -> dict[UUID, ServiceObservations]:
    """Query the services of all due `rollouts`; rollouts without such checks are left out.

    Raises nothing: a failure of a service is its observation, as `problem`; rollouts without
    observations hold.
    """
    try:
        queries = _due_queries(rollouts, now)
        return _by_rollout(queries, _run_all(queries)) if queries else {}
    except Exception:
        log.exception("rollout.service_queries_failed")
        return {}


def _due_queries(rollouts: Sequence[Rollout], now: datetime) -> list[ServiceQuery]:
    due = [rollout.pk for rollout in rollouts if _is_due(rollout, now) and _has_service(rollout)]
    if not due:
        return []
    queries: list[ServiceQuery] = []
    for rollout in Rollout.objects.filter(pk__in=due).select_related("model", "target", "baseline"):
        try:
            queries += _queries_of(rollout, now)
        except Exception:
            # An error in one rollout must not stop the queries of the others.
            log.exception("rollout.service_queries_failed %s", rollout.pk)
    return queries


def _is_due(rollout: Rollout, now: datetime) -> bool:
    if rollout.next_check_at is None:
        # A baking step without a due time is not evaluated, and needs no queries every second.
        return rollout.phase == Phase.PAUSED
    return rollout.phase in {Phase.BAKING, Phase.PAUSED} and rollout.next_check_at <= now


def _has_service(rollout: Rollout) -> bool:
    """Return whether the step has a service check, without parsing the plan: most have none."""
    steps = rollout.plan_document.get("steps", ()) if rollout.plan_document else ()
    checks = steps[rollout.step_index]["checks"] if 0 <= rollout.step_index < len(steps) else ()
    names = (each if isinstance(each, str) else each.get("check") for each in checks)
    return any(name in SERVICES for name in names)


def _queries_of(rollout: Rollout, now: datetime) -> list[ServiceQuery]:
    return [
        ServiceQuery(rollout.pk, rollout.step_index, check.label, _fetch_of(rollout, check, now))
        for check in _service_checks(rollout)
    ]


def _fetch_of(rollout: Rollout, check: CheckDocument, now: datetime) -> Fetch:
    """Return the query of a check; an error in it must not affect other checks."""
    try:
        return SERVICES[check.check](rollout, check, now)
    except Exception as error:
        log.exception("rollout.check_failed %s %s", rollout.pk, check.label)
        problem = f"internal error in the check: {type(error).__name__}"
        return partial(dict, problem=problem)


def _service_checks(rollout: Rollout) -> list[CheckDocument]:
    steps = from_json(rollout.plan_document).steps if rollout.plan_document else ()
    if not 0 <= rollout.step_index < len(steps):
        return []
    return [check for check in steps[rollout.step_index].check_documents if check.check in SERVICES]


def _run_all(queries: Sequence[ServiceQuery]) -> list[Observation]:
    """Run all queries at once, and wait for them up to QUERIES_S."""
    pool = ThreadPoolExecutor(min(THREADS_MAX, len(queries)), thread_name_prefix="check")
    try:
        futures = [pool.submit(_run, query) for query in queries]
        wait(futures, timeout=QUERIES_S)
        return [_observation_of(future) for future in futures]
    finally:
        # A thread that is still reading ends at the time limit of its own call.
        pool.shutdown(wait=False, cancel_futures=True)


def _run(query: ServiceQuery) -> Observation:
    try:
        return query.fetch()
    except ProviderError as error:
        return {"problem": str(error)}
    except Exception as error:
        log.exception("rollout.check_failed %s %s", query.rollout_id, query.label)
        return {"problem": f"internal error in the check: {type(error).__name__}"}


def _observation_of(future: Future[Observation]) -> Observation:
    if not future.done():
        return {"problem": f"no answer within {QUERIES_S:g} s, the limit for all services together"}
    return future.result()


def _by_rollout(
    queries: Sequence[ServiceQuery], observations: Sequence[Observation]
) -> dict[UUID, ServiceObservations]:
    steps: dict[tuple[UUID, int], dict[str, Observation]] = {}
    for query, observation in zip(queries, observations, strict=True):
        key = query.rollout_id, query.step_index
        steps.setdefault(key, {})[query.label] = observation
    return {
        rollout_id: ServiceObservations(step_index, by_label)
        for (rollout_id, step_index), by_label in steps.items()
    }


def _prometheus(rollout: Rollout, check: CheckDocument, now: datetime) -> Fetch:
    """Return the query as of now, with the rollout's values in its placeholders."""
    values = {
        "model": rollout.model.name,
        "version": str(rollout.target.number),
        "stable": str(rollout.baseline.number) if rollout.baseline else "",
    }
    query = fill_query(check.setting("query"), values)
    return partial(query_prometheus, settings.PROMETHEUS_URL, query, now)


def _webhook(rollout: Rollout, check: CheckDocument, now: datetime) -> Fetch:
    """Return the call of a webhook, which describes the step; it repeats at each evaluation."""
    body = msgspec.json.encode(
        {
            "rollout": str(rollout.pk),
            "check": check.label,
            "model": rollout.model.name,
            "target": rollout.target.number,
            "stable": rollout.baseline.number if rollout.baseline else None,
            "step": rollout.step_index,
            "weight_bp": rollout.weight_bp,
            "at": now.isoformat(),
        }
    )
    message_id = f"check_{uuid5(rollout.pk, f'{check.label} {now.isoformat()}').hex}"
    headers = signed_headers(settings.WEBHOOK_SECRET, message_id, now, body)
    return partial(call_webhook, check.setting("url"), body, headers, egress_policy())


def has_observations(rollout: Rollout, observed: ServiceObservations | None) -> bool:
    """Return whether the current step's services, if it has any, were queried for this step."""
    if not _service_checks(rollout):
        return True
    return observed is not None and observed.step_index == rollout.step_index


def observe_database(
    rollout: Rollout, checks: Sequence[CheckDocument], now: datetime
) -> dict[str, Observation]:
    """Return the observations from our tables for the step's checks, by label."""
    return {
        check.label: DATABASE[check.check](rollout, check, now)
        for check in checks
        if check.check in DATABASE
    }


def _smoke(rollout: Rollout, _: CheckDocument, now: datetime) -> Observation:
    """Count the requests that named the target by its number, since the rollout's first table.

    A request without an answer of the target is an error, also if the client's own timeout expired.
    Requests that no version accepts and cache hits do not count. Windows without ends are from an
    older data plane.
    """
    rows = TelemetryRow.objects.filter(
        model_name=rollout.model.name,
        version_number=str(rollout.target.number),
        variant=EXPLICIT,
        ended_at__gte=rollout.started_at,
        ended_at__lte=now,
    )
    older = Q(ends={}, assigned_requests=0)
    sums = rows.aggregate(
        requests=Coalesce(Sum("requests", filter=older), 0),
        errors=Coalesce(Sum("errors", filter=older), 0),
        **{name: _ended(name) for name in ("answered", *WITHOUT_ANSWER)},
    )
    errors = sum(sums[name] for name in WITHOUT_ANSWER)
    return {
        "requests": sums["requests"] + sums["answered"] + errors,
        "errors": sums["errors"] + errors,
    }


def _ended(name: str) -> Coalesce:
    return Coalesce(Sum(Cast(KT(f"ends__{name}"), IntegerField())), 0)


def _shadow(rollout: Rollout, _: CheckDocument, now: datetime) -> Observation:
    """Count how the answers to this step's copied requests agreed."""
    agreement = shadow_agreement(
        str(rollout.pk),
        since=rollout.started_at,
        until=now,
        generation_min=rollout.step_generations[-1],
    )
    return {name: getattr(agreement, name) for name in (*COUNTS, "largest_difference")}


DATABASE: dict[str, Observe] = {
    kinds.SMOKE: _smoke,
    kinds.SHADOW_AGREEMENT: _shadow,
}
# Checks that an external service answers.
SERVICES: dict[str, Callable[[Rollout, CheckDocument, datetime], Fetch]] = {
    kinds.PROMETHEUS: _prometheus,
    kinds.WEBHOOK: _webhook,
}
