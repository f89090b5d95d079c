"""Who serves: data-plane instances, what they applied or refused, and what was published."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings

from apps.rollouts.models import BreakerTripRecord, Instance, PublishedTable

# A silent instance is shown for so long, then forgotten by the pages.
REMEMBERED = timedelta(hours=24)
TABLES_MAX = 20
TRIPS_MAX = 20


@dataclass(frozen=True)
class Member:
    """An instance and its state: live, behind, refused, stopping or gone."""

    instance: Instance
    state: str

    @property
    def dropped(self) -> int:
        return sum(self.instance.dropped.values())


@dataclass(frozen=True)
class Fleet:
    """`latest` is what the data planes should serve from; None before the first table."""

    latest: PublishedTable | None
    members: list[Member]

    def _in(self, *states: str) -> list[Member]:
        return [member for member in self.members if member.state in states]

    @property
    def live(self) -> list[Member]:
        return self._in("live", "behind", "refused")

    @property
    def behind(self) -> list[Member]:
        return self._in("behind", "refused")

    @property
    def refused(self) -> list[Member]:
        return self._in("refused")

    @property
    def gone(self) -> list[Member]:
        return self._in("gone")

    @property
    def dropped(self) -> int:
        return sum(member.dropped for member in self.live)

    @property
    def oldest_report_at(self) -> datetime | None:
        return min((member.instance.reported_at for member in self.live), default=None)

    @property
    def stamp(self) -> tuple[object, ...]:
        """What changes whenever the picture does, except for the passing of time."""
        states = [
            (m.instance.name, m.state, m.instance.applied_generation, m.dropped)
            for m in self.members
        ]
        return (self.latest.generation if self.latest else 0, *states)


def read_fleet(now: datetime) -> Fleet:
    """Return the instances that reported within a day, and the latest table without its bytes."""
    latest = PublishedTable.objects.defer("document").order_by("-generation").first()
    generation = latest.generation if latest else 0
    known = Instance.objects.filter(reported_at__gt=now - REMEMBERED)
    return Fleet(latest, [Member(each, _state(each, generation, now)) for each in known])


def _state(instance: Instance, generation: int, now: datetime) -> str:
    if instance.reported_at < now - timedelta(seconds=settings.INSTANCE_LIVE_S):
        return "gone"
    if instance.is_stopping:
        return "stopping"
    if instance.applied_generation >= generation:
        return "live"
    refused = instance.refused_generation
    return "refused" if refused is not None and refused >= generation else "behind"


def recent_tables() -> list[PublishedTable]:
    """Return the last published tables, newest first, each with `document` for its size."""
    return list(PublishedTable.objects.order_by("-generation")[:TABLES_MAX])


def recent_trips() -> list[BreakerTripRecord]:
    return list(BreakerTripRecord.objects.order_by("-last_at")[:TRIPS_MAX])
