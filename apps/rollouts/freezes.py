"""Freeze windows: times when nothing starts and nothing gets further; going back never waits.

A weekly window recurs by the clocks of its time zone: one from 15:00 opens at 15:00 in winter and
in summer, so two of its occurrences may lie an hour more or less than a week apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.db.models import Q

from apps.lib.errors import Invalid
from apps.models.models import RegisteredModel
from apps.rollouts.models import FreezeWindow

WEEK = timedelta(days=7)


@dataclass(frozen=True)
class Freeze:
    """A window that is open now, and until when."""

    until: datetime
    window: FreezeWindow

    @property
    def reason(self) -> str:
        return self.window.reason

    @property
    def words(self) -> str:
        """The end, in UTC and by the clocks of the window's own time zone."""
        text = f"{self.until:%Y-%m-%d %H:%M} UTC"
        if self.window.time_zone == "UTC":
            return text
        local = self.until.astimezone(read_zone(self.window.time_zone))
        return f"{text} ({local:%H:%M} in {self.window.time_zone})"


@lru_cache(maxsize=1_000)
def read_zone(name: str) -> ZoneInfo:
    """Return the time zone of that name of the IANA database. Raises Invalid."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise Invalid(
            f"time_zone: {name[:64]!r} is not a time zone; name one such as Europe/Berlin, or UTC."
        ) from None


def open_until(window: FreezeWindow, now: datetime) -> datetime | None:
    """Return when the window that is open at `now` ends; None when it is not open."""
    ends = (ends_at for starts_at, ends_at in _around(window, now) if starts_at <= now < ends_at)
    return max(ends, default=None)


def next_start(window: FreezeWindow, now: datetime) -> datetime:
    """Return when a window that is not open opens next, or when it did for the only time."""
    coming = (starts_at for starts_at, _ in _around(window, now) if starts_at >= now)
    return min(coming, default=window.starts_at)


def _around(window: FreezeWindow, now: datetime) -> list[tuple[datetime, datetime]]:
    """Return the occurrences of the window before, at and after `now`, as instants in UTC."""
    if not window.is_weekly:
        return [(window.starts_at, window.ends_at)]
    zone = read_zone(window.time_zone)
    week = max(0, (now - window.starts_at) // WEEK)
    near = range(max(0, week - 1), week + 3)
    return [
        (_later(window.starts_at, zone, weeks), _later(window.ends_at, zone, weeks))
        for weeks in near
    ]


def _later(at: datetime, zone: ZoneInfo, weeks: int) -> datetime:
    """Return the instant at which the zone's clocks show the same time so many weeks later."""
    return (at.astimezone(zone) + weeks * WEEK).astimezone(UTC)


def open_freezes(model: RegisteredModel, now: datetime) -> list[Freeze]:
    """Return the open freeze windows of `model` and of all models, the longest first."""
    windows = FreezeWindow.objects.filter(Q(model=None) | Q(model=model), starts_at__lte=now)
    ends = [(open_until(window, now), window) for window in windows]
    found = [Freeze(until, window) for until, window in ends if until is not None]
    return sorted(found, key=lambda each: (each.until, each.window.pk), reverse=True)


def frozen_by(model: RegisteredModel, now: datetime) -> Freeze | None:
    """Return the open freeze window of `model`, or of all models, that lasts longest."""
    return next(iter(open_freezes(model, now)), None)
