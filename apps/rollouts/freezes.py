"""Freeze windows: no rollout starts or advances in them; rollbacks never wait.

A weekly window recurs at local time: one from 15:00 opens at 15:00 in winter and in summer, so two
occurrences may be one hour more or less than a week apart.
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
    """A window that is open now, and its end."""

    until: datetime
    window: FreezeWindow

    @property
    def reason(self) -> str:
        return self.window.reason

    @property
    def words(self) -> str:
        """The end, in UTC and in the time zone of the window."""
        text = f"{self.until:%Y-%m-%d %H:%M} UTC"
        if self.window.time_zone == "UTC":
            return text
        local = self.until.astimezone(read_zone(self.window.time_zone))
        return f"{text} ({local:%H:%M} in {self.window.time_zone})"


@lru_cache(maxsize=1_000)
def read_zone(name: str) -> ZoneInfo:
    """Return the time zone with that IANA name. Raises Invalid."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise Invalid(
            f"unknown time zone {name[:64]!r}; use an IANA name such as Europe/Berlin.",
            field="time_zone",
        ) from None


def open_until(window: FreezeWindow, now: datetime) -> datetime | None:
    """Return the end of a window that is open at `now`; None when it is not open."""
    ends = (ends_at for starts_at, ends_at in _around(window, now) if starts_at <= now < ends_at)
    return max(ends, default=None)


def next_start(window: FreezeWindow, now: datetime) -> datetime:
    """Return the next start of a window that is not open; of a past one its only start."""
    upcoming = (starts_at for starts_at, _ in _around(window, now) if starts_at >= now)
    return min(upcoming, default=window.starts_at)


def _around(window: FreezeWindow, now: datetime) -> list[tuple[datetime, datetime]]:
    """Return start and end (UTC) of the occurrences before, at and after `now`."""
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
    """Return the time in UTC that is `weeks` later at the same local time of the zone."""
    return (at.astimezone(zone) + weeks * WEEK).astimezone(UTC)


def open_freezes(model: RegisteredModel, now: datetime) -> list[Freeze]:
    """Return the open freeze windows of `model` and of all models, the longest first."""
    windows = FreezeWindow.objects.filter(Q(model=None) | Q(model=model), starts_at__lte=now)
    ends = [(open_until(window, now), window) for window in windows]
    freezes = [Freeze(until, window) for until, window in ends if until is not None]
    return sorted(freezes, key=lambda each: (each.until, each.window.pk), reverse=True)


def frozen_by(model: RegisteredModel, now: datetime) -> Freeze | None:
    """Return the open freeze window of `model`, or of all models, that lasts longest."""
    return next(iter(open_freezes(model, now)), None)
