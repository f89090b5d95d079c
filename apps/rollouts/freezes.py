"""Freeze windows: times when nothing starts and nothing gets further; going back never waits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Q

from apps.models.models import RegisteredModel
from apps.rollouts.models import FreezeWindow

WEEK = timedelta(days=7)


@dataclass(frozen=True)
class Freeze:
    """A window that is open now, and until when."""

    until: datetime
    reason: str


def open_until(window: FreezeWindow, now: datetime) -> datetime | None:
    """Return when the window that is open at `now` ends; None when it is not open."""
    if now < window.starts_at:
        return None
    ends_at = window.ends_at
    if window.is_weekly:
        ends_at += ((now - window.starts_at) // WEEK) * WEEK
    return ends_at if now < ends_at else None


def frozen_by(model: RegisteredModel, now: datetime) -> Freeze | None:
    """Return the open freeze window of `model`, or of all models, that lasts longest."""
    windows = FreezeWindow.objects.filter(Q(model=None) | Q(model=model), starts_at__lte=now)
    return longest_open(windows, now)


def longest_open(windows: Iterable[FreezeWindow], now: datetime) -> Freeze | None:
    """Return the one of `windows` that is open at `now` and lasts longest."""
    ends = [(until, window.reason) for window in windows if (until := open_until(window, now))]
    return Freeze(*max(ends)) if ends else None
