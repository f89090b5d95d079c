"""The page for the person with the pager: who serves, from which table, and what tripped."""

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
    found = read_fleet(now)
    trips, alarms, services = recent_trips(), recent_alarms(), recent_checks(now)

    def context() -> dict[str, Any]:
        return {
            "now": now,
            "fleet": found,
            "tables": recent_tables(),
            "trips": trips,
            "alarms": alarms,
            "services": services,
            "identities": identities,
            "can_forget": has_role(request.user, None, Role.OPERATOR),
        }

    counts = [(trip.pk, trip.count) for trip in trips]
    seen = [(alarm.pk, alarm.last_at) for alarm in alarms]
    identities = read_identities(now)
    checks = [(row.pk, row.is_open, row.trouble) for row in services]
    # Instances report every second or two: their ages are counted by the browser in between.
    reports = [member.instance.reported_at for member in found.members]
    return render_live(
        request,
        template="rollouts/fleet.html",
        fragment="rollouts/_fleet.html",
        stamp=stamp_of(*found.stamp, *counts, *seen, *reports, *checks, *identities.stamp),
        context=context,
    )


@page
@require_POST
def forget(request: PageRequest) -> HttpResponse:
    """Stop waiting for an instance that went silent."""
    require_role(request.user, None, Role.OPERATOR)
    found = get_object_or_404(Instance, name=request.POST.get("name", ""))

    text = (
        f"Forget instance {found.name}? Rollouts no longer wait for it. Forget only what you know "
        "to be gone: if it still serves, nobody sees from which table. If it reports again, it is "
        "known again."
    )
    if asked := ask(request, Question(text, f"Forget {found.name}")):
        return asked

    def forget_it() -> str:
        forget_instance(instance=found, actor=actor_of(request), now=database_now())
        return f"Instance {found.name} is forgotten: no rollout waits for it any more."

    attempt(request, forget_it)
    return go_to(request, "fleet")
