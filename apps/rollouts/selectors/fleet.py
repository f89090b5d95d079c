"""Data-plane instances with their tables, published tables, traffic alarms, breaker trips."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings

from apps.rollouts.epochs import current_epoch
from apps.rollouts.fleet_status import PIN_ALL, ahead_reason
from apps.rollouts.models import BreakerTripRecord, Epoch, Instance, PublishedTable, TrafficAlarm
from contract.generations import epoch_of
from contract.messages import STREAM_TELEMETRY

# How long pages show a silent instance.
REMEMBERED = timedelta(hours=24)
TABLES_MAX = 20
TRIPS_MAX = 20
ALARMS_MAX = 20
# A table is applied within seconds of its publication; after this time an instance is stale.
STALE_AFTER = timedelta(seconds=30)


@dataclass(frozen=True)
class Member:
    """An instance and its state: live, behind, stale, refused, stopping, gone or ahead.

    Stale: behind for more than STALE_AFTER. Ahead: it serves a table newer than those of this
    database. `behind_since` is when the first table that it has not applied was published.
    """

    instance: Instance
    state: str
    behind_since: datetime | None = None
    # It went silent without a stop report; rollouts wait for it until then.
    waited_until: datetime | None = None

    @property
    def pins(self) -> str:
        """The models that its operator pinned to stable, comma-separated; empty for none."""
        names = self.instance.pinned
        return "all models" if PIN_ALL in names else ", ".join(names)

    @property
    def dropped(self) -> int:
        return sum(self.instance.dropped.values())


@dataclass(frozen=True)
class Fleet:
    """`latest` is the newest table, which all data planes should serve; None before the first."""

    latest: PublishedTable | None
    members: list[Member]
    epoch: Epoch | None = None

    def _in(self, *states: str) -> list[Member]:
        return [member for member in self.members if member.state in states]

    @property
    def live(self) -> list[Member]:
        return self._in("live", "behind", "stale", "refused", "ahead")

    @property
    def behind(self) -> list[Member]:
        return self._in("behind", "stale", "refused", "ahead")

    @property
    def stale(self) -> list[Member]:
        return self._in("stale")

    @property
    def ahead(self) -> list[tuple[Member, str]]:
        """Return the instances that serve tables of another database, each with the reason."""
        return [(each, ahead_reason(each.instance, self.epoch)) for each in self._in("ahead")]

    @property
    def pinned(self) -> list[Member]:
        return [member for member in self.live if member.pins]

    @property
    def refused(self) -> list[Member]:
        return self._in("refused")

    @property
    def lossy(self) -> list[Member]:
        """Return the live instances that dropped telemetry: request ends may be missing."""
        return [m for m in self.live if m.instance.dropped.get(STREAM_TELEMETRY, 0)]

    @property
    def silent(self) -> list[Member]:
        """Return the silent instances that may still serve."""
        return [member for member in self.members if member.waited_until is not None]

    @property
    def inactive(self) -> list[Member]:
        return self._in("gone")

    @property
    def dropped(self) -> int:
        return sum(member.dropped for member in self.live)

    @property
    def oldest_report_at(self) -> datetime | None:
        return min((member.instance.reported_at for member in self.live), default=None)

    @property
    def stamp(self) -> tuple[object, ...]:
        """Values that change whenever the page changes, apart from ages."""
        states = [
            (
                m.instance.name,
                m.state,
                m.instance.applied_generation,
                m.dropped,
                m.pins,
                m.waited_until is None,
            )
            for m in self.members
        ]
        return (self.latest.generation if self.latest else 0, *states)


def read_fleet(now: datetime) -> Fleet:
    """Return the instances that reported within a day, and the latest table without document."""
    latest = PublishedTable.objects.defer("document").order_by("-generation").first()
    generation = latest.generation if latest else 0
    known = list(Instance.objects.filter(reported_at__gt=now - REMEMBERED))
    epoch = current_epoch()
    since = _behind_since(known, generation)
    if epoch is not None:
        before = (each.applied_generation for each in known)
        since |= {each: epoch.began_at for each in before if epoch_of(each) < epoch.number}
    members = [
        _member(each, generation, since.get(each.applied_generation), epoch, now) for each in known
    ]
    return Fleet(latest, members, epoch)


def _behind_since(instances: list[Instance], generation: int) -> dict[int, datetime]:
    """Return, for each older generation, when the next one was published."""
    applied = {
        each.applied_generation for each in instances if each.applied_generation < generation
    }
    following = PublishedTable.objects.filter(generation__in=[number + 1 for number in applied])
    return {number - 1: at for number, at in following.values_list("generation", "published_at")}


def _member(
    instance: Instance,
    generation: int,
    behind_since: datetime | None,
    epoch: Epoch | None,
    now: datetime,
) -> Member:
    state = _state(instance, generation, now)
    if state == "behind" and (behind_since is None or behind_since < now - STALE_AFTER):
        # A deleted table was published long ago.
        state = "stale"
    return Member(instance, state, behind_since, _waited_until(instance, state, epoch, now))


def _waited_until(
    instance: Instance, state: str, epoch: Epoch | None, now: datetime
) -> datetime | None:
    if epoch is not None and instance.reported_at < epoch.began_at:
        return None
    until = instance.reported_at + timedelta(seconds=settings.INSTANCE_FORGOTTEN_S)
    return until if state == "gone" and not instance.is_stopping and until >= now else None


def _state(instance: Instance, generation: int, now: datetime) -> str:
    if instance.reported_at < now - timedelta(seconds=settings.INSTANCE_LIVE_S):
        return "gone"
    if instance.is_stopping:
        return "stopping"
    if instance.applied_generation >= generation:
        return "ahead" if instance.serves_unknown else "live"
    refused = instance.refused_generation
    return "refused" if refused is not None and refused >= generation else "behind"


def recent_tables() -> list[PublishedTable]:
    """Return the last published tables, newest first, with `document` for the size."""
    return list(PublishedTable.objects.order_by("-generation")[:TABLES_MAX])


def recent_alarms() -> list[TrafficAlarm]:
    """Return the last traffic alarms, newest first."""
    return list(TrafficAlarm.objects.order_by("-last_at")[:ALARMS_MAX])


def recent_trips() -> list[BreakerTripRecord]:
    return list(BreakerTripRecord.objects.order_by("-last_at")[:TRIPS_MAX])
