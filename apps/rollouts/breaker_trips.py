"""Decides which circuit breaker trips fail a rollout, and which are the servers' fault."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db.models import QuerySet

from apps.rollouts.models import BreakerTripRecord, Rollout

# Both versions tripping this close together is an incident of the servers, not of the canary.
SAME_INCIDENT = timedelta(seconds=30)
# A canary has less time for an answer than stable, so that it trips first when the servers hang;
# after this delay stable's trip is known too. Until then the breaker blocks the canary's requests.
TRIP_SETTLES_IN = timedelta(seconds=5)


def trip_of_target(rollout: Rollout, now: datetime) -> BreakerTripRecord | None:
    """Return the latest settled trip of the target without one of stable at the same time."""
    first = rollout.step_generations[0] if rollout.step_generations else 0
    trips = BreakerTripRecord.objects.filter(
        model_name=rollout.model.name, generation__gte=first, last_at__gte=rollout.started_at
    )
    settled = trips.filter(
        version_number=str(rollout.target.number), first_at__lte=now - TRIP_SETTLES_IN
    )
    for trip in settled.order_by("-last_at"):
        if not _stable_tripped_too(rollout, trips, trip):
            return trip
    return None


def _stable_tripped_too(
    rollout: Rollout, trips: QuerySet[BreakerTripRecord], trip: BreakerTripRecord
) -> bool:
    if rollout.baseline is None:
        return False
    near = (trip.last_at - SAME_INCIDENT, trip.last_at + SAME_INCIDENT)
    stable = trips.filter(version_number=str(rollout.baseline.number))
    return stable.filter(last_at__range=near).exists()
