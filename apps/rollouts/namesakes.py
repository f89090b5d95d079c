"""Two instances of one name: the second is refused, for nobody could tell their reports apart.

What tells a second one from a restart is its home, the name of its state directory. A home that is
not the last one's takes the name over when the last one has gone silent or said that it stops.
"""

from __future__ import annotations

from datetime import datetime

from apps.identity.models import InstanceHome
from apps.rollouts.roster import live_instances


def live_homes(now: datetime, names: list[str] | None = None) -> dict[str, str]:
    """Return the homes of the live instances, or of those `names` that are live."""
    live = live_instances(now)
    if names is not None:
        live = live.filter(name__in=names)
    homes = InstanceHome.objects.filter(name__in=live.values("name"))
    return dict(homes.values_list("name", "home"))


def is_second(name: str, home: str, now: datetime) -> bool:
    """Say whether another instance of that name is live; without a home nobody can tell."""
    known = live_homes(now, [name]).get(name, "")
    return bool(home and known) and home != known


def keep_home(name: str, home: str, *, has_own_token: bool, now: datetime) -> None:
    """Note where an instance that was taken reports from."""
    row = InstanceHome.objects.filter(name=name).first()
    if row is None or (row.home, row.has_own_token) != (home, has_own_token):
        values = {"home": home, "has_own_token": has_own_token, "since": now}
        InstanceHome.objects.update_or_create(name=name, defaults=values)
