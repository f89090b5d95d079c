"""The fleet page for the person on call: instances, tables, alarms and breaker trips."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_POST, require_safe

from apps.identity.selectors import read_identities
from apps.identity.service_checks import recent_checks
from apps.lib.clock import database_now
from apps.lib.confirm import Question, ask
from apps.lib.pages import PageRequest, attempt, go_to, page, render_live, stamp_of
from apps.models.access import actor_of, has_role, require_role
from apps.models.models import Role
from apps.rollouts.maintenance import forget_instance
from apps.rollouts.models import Instance
from apps.rollouts.selectors.fleet import read_fleet, recent_alarms, recent_tables, recent_trips


@page
@require_safe
def fleet(request: PageRequest) -> HttpResponse:
    now = database_now()
    status = read_fleet(now)
    trips, alarms, services = recent_trips(), recent_alarms(), recent_checks(now)

    def context() -> dict[str, Any]:
        return {
            "now": now,
            "fleet": status,
            "tables": recent_tables(),
            "trips": trips,
            "alarms": alarms,
            "services": services,
            "identities": identities,
            "can_forget": has_role(request.user, None, Role.OPERATOR),
        }

    counts = [(trip.pk, trip.count) for trip in trips]
    alarm_times = [(alarm.pk, alarm.last_at) for alarm in alarms]
    identities = read_identities(now)
    checks = [(row.pk, row.is_open, row.trouble) for row in services]
    # Instances report every 1 to 2 seconds; the browser counts their ages in between.
    reports = [member.instance.reported_at for member in status.members]
    return render_live(
        request,
        template="rollouts/fleet.html",
        fragment="rollouts/_fleet.html",
        stamp=stamp_of(*status.stamp, *counts, *alarm_times, *reports, *checks, *identities.stamp),
        context=context,
    )


@page
@require_POST
def forget(request: PageRequest) -> HttpResponse:
    """Stop waiting for an instance that went silent."""
    require_role(request.user, None, Role.OPERATOR)
    instance = get_object_or_404(Instance, name=request.POST.get("name", ""))

    text = (
        f"Forget instance {instance.name}? Rollouts no longer wait for it. Forget only an instance "
        "that does not run any more: otherwise it may serve an old table unnoticed. If it reports "
        "again, it is listed again."
    )
    if confirmation := ask(request, Question(text, f"Forget {instance.name}")):
        return confirmation

    def act() -> str:
        forget_instance(instance=instance, actor=actor_of(request), now=database_now())
        return f"Instance {instance.name} is forgotten. Rollouts no longer wait for it."

    attempt(request, act)
    return go_to(request, "fleet")
