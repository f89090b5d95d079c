"""The page for the person with the pager: who serves, from which table, and what tripped."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.views.decorators.http import require_safe

from apps.lib.clock import database_now
from apps.lib.pages import PageRequest, page, render_live, stamp_of
from apps.rollouts.selectors.fleet import read_fleet, recent_tables, recent_trips


@page
@require_safe
def fleet(request: PageRequest) -> HttpResponse:
    now = database_now()
    found = read_fleet(now)
    trips = recent_trips()

    def context() -> dict[str, Any]:
        return {"now": now, "fleet": found, "tables": recent_tables(), "trips": trips}

    counts = [(trip.pk, trip.count) for trip in trips]
    # Instances report every second or two: their ages are counted by the browser in between.
    reports = [member.instance.reported_at for member in found.members]
    return render_live(
        request,
        template="rollouts/fleet.html",
        fragment="rollouts/_fleet.html",
        stamp=stamp_of(*found.stamp, *counts, *reports),
        context=context,
    )
