"""Brings what checks are answered from besides the intervals of traffic.

Two sorts: what our own tables hold is read inside the tick's transaction; services outside are
asked before it, without any lock, so that a slow one holds up no abort.
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
from apps.rollouts.prometheus import ask_prometheus, fill_query
from apps.rollouts.provider_client import ProviderError
from apps.rollouts.selectors.shadows import COUNTS, shadow_agreement
from apps.rollouts.states import Phase
from apps.rollouts.webhooks import ask_webhook, signed_headers
from contract.routing import EXPLICIT

log = logging.getLogger(__name__)

# All services together may hold up a tick for so long, whatever each of them does.
ASKING_S = 4.0
THREADS_MAX = 32

# How a request may end that its version leaves without an answer; see the contract's Ends.
WITHOUT_ANSWER = ("failed", "fell_back", "expired", "shed", "abandoned", "bypassed")

Observe = Callable[[Rollout, CheckDocument, datetime], Observation]


@dataclass(frozen=True)
class Asked:
    """What services outside answered for one step of a rollout, by the check's label."""

    step_index: int
    answers: Mapping[str, Observation]


# Asks, and returns what came of it or raises ProviderError, soon. Runs in a thread: no row is read
# in there.
Ask = Callable[[], Observation]


@dataclass(frozen=True)
class Enquiry:
    """One check of a rollout's step that a service outside is to answer."""

    rollout_id: UUID
    step_index: int
    label: str
    ask: Ask


def ask_services(rollouts: Sequence[Rollout], now: datetime) -> dict[UUID, Asked]:
    """Ask for all checks of `rollouts` that are due; those without such checks are left out.

    Raises nothing: what a service did wrong is its observation, as `problem`, and rollouts that
    were not asked for hold.
    """
    try:
        enquiries = _due_enquiries(rollouts, now)
        return _sort(enquiries, _ask_all(enquiries)) if enquiries else {}
    except Exception:
        log.exception("rollout.asking_failed")
        return {}


def _due_enquiries(rollouts: Sequence[Rollout], now: datetime) -> list[Enquiry]:
    due = [rollout.pk for rollout in rollouts if _is_due(rollout, now) and _may_ask(rollout)]
    if not due:
        return []
    found: list[Enquiry] = []
    for rollout in Rollout.objects.filter(pk__in=due).select_related("model", "target", "baseline"):
        try:
            found += _enquiries_of(rollout, now)
        except Exception:
            # One rollout's fault must not keep the others from being asked about.
            log.exception("rollout.asking_failed %s", rollout.pk)
    return found


def _is_due(rollout: Rollout, now: datetime) -> bool:
    if rollout.next_check_at is None:
        # A step whose clock stands is not evaluated; nobody need be asked about it every second.
        return rollout.phase == Phase.PAUSED
    return rollout.phase in {Phase.BAKING, Phase.PAUSED} and rollout.next_check_at <= now


def _may_ask(rollout: Rollout) -> bool:
    """Say whether the step names a service; most do not, and their plans need not be parsed."""
    steps = rollout.plan_document.get("steps", ()) if rollout.plan_document else ()
    checks = steps[rollout.step_index]["checks"] if 0 <= rollout.step_index < len(steps) else ()
    names = (each if isinstance(each, str) else each.get("check") for each in checks)
    return any(name in SERVICES for name in names)


def _enquiries_of(rollout: Rollout, now: datetime) -> list[Enquiry]:
    return [
        Enquiry(rollout.pk, rollout.step_index, check.label, _ask_for(rollout, check, now))
        for check in _checks_outside(rollout)
    ]


def _ask_for(rollout: Rollout, check: CheckDocument, now: datetime) -> Ask:
    """Return how to ask for a check; one that cannot be asked must not silence the others."""
    try:
        return SERVICES[check.check](rollout, check, now)
    except Exception as error:
        log.exception("rollout.check_failed %s %s", rollout.pk, check.label)
        problem = f"the check could not be asked: {type(error).__name__}"
        return partial(dict, problem=problem)


def _checks_outside(rollout: Rollout) -> list[CheckDocument]:
    steps = from_json(rollout.plan_document).steps if rollout.plan_document else ()
    if not 0 <= rollout.step_index < len(steps):
        return []
    return [check for check in steps[rollout.step_index].questions if check.check in SERVICES]


def _ask_all(enquiries: Sequence[Enquiry]) -> list[Observation]:
    """Ask at once, and wait for all of them no longer than the bound."""
    pool = ThreadPoolExecutor(min(THREADS_MAX, len(enquiries)), thread_name_prefix="check")
    try:
        futures = [pool.submit(_ask_one, enquiry) for enquiry in enquiries]
        wait(futures, timeout=ASKING_S)
        return [_answer_of(future) for future in futures]
    finally:
        # A thread that still reads ends at the bound of its own call.
        pool.shutdown(wait=False, cancel_futures=True)


def _ask_one(enquiry: Enquiry) -> Observation:
    try:
        return enquiry.ask()
    except ProviderError as error:
        return {"problem": str(error)}
    except Exception as error:
        log.exception("rollout.check_failed %s %s", enquiry.rollout_id, enquiry.label)
        return {"problem": f"the check could not be asked: {type(error).__name__}"}


def _answer_of(future: Future[Observation]) -> Observation:
    if not future.done():
        return {"problem": f"no answer within {ASKING_S:g} s, for all services together"}
    return future.result()


def _sort(enquiries: Sequence[Enquiry], observations: Sequence[Observation]) -> dict[UUID, Asked]:
    answers: dict[tuple[UUID, int], dict[str, Observation]] = {}
    for enquiry, observation in zip(enquiries, observations, strict=True):
        key = enquiry.rollout_id, enquiry.step_index
        answers.setdefault(key, {})[enquiry.label] = observation
    return {pk: Asked(step_index, found) for (pk, step_index), found in answers.items()}


def _prometheus(rollout: Rollout, check: CheckDocument, now: datetime) -> Ask:
    """The query's answer as of now; what it names comes from the rollout."""
    values = {
        "model": rollout.model.name,
        "version": str(rollout.target.number),
        "stable": str(rollout.baseline.number) if rollout.baseline else "",
    }
    query = fill_query(check.setting("query"), values)
    return partial(ask_prometheus, settings.PROMETHEUS_URL, query, now)


def _webhook(rollout: Rollout, check: CheckDocument, now: datetime) -> Ask:
    """What a service is told of the step; the same step is asked about again and again."""
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
    return partial(ask_webhook, check.setting("url"), body, headers, egress_policy())


def has_answers(rollout: Rollout, asked: Asked | None) -> bool:
    """Say whether what the step has to ask outside was asked, for this very step."""
    if not _checks_outside(rollout):
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
    """Requests that named the target by its number, since the rollout's first table.

    One without an answer of the target is an error, also where its client's own time ran out; those
    that no version accepts and those of the cache say nothing. Windows that tell no ends are of an
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
SERVICES: dict[str, Callable[[Rollout, CheckDocument, datetime], Ask]] = {
    kinds.PROMETHEUS: _prometheus,
    kinds.WEBHOOK: _webhook,
}
