"""Detects two live instances with one name: the second is refused, as reports would be mixed.

A second instance differs from a restart by its home, the id of its state directory. Another home
takes over the name once the last instance is silent or has reported that it stops.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from django.db.models import Q

from apps.identity.models import InstanceHome
from apps.rollouts.fleet_status import live_instances
from contract.message_signatures import group_of


def live_homes(now: datetime, instance: str = "") -> dict[str, set[str]]:
    """Return the homes of live processes by instance; with `instance` of that one alone.

    The process of an instance with one worker has its name; with several: `edge/0`, `edge/1`, ….
    """
    live = live_instances(now)
    if instance:
        live = live.filter(Q(name=instance) | Q(name__startswith=f"{instance}/"))
    homes: dict[str, set[str]] = defaultdict(set)
    rows = InstanceHome.objects.filter(name__in=live.values("name")).exclude(home="")
    for name, home in rows.values_list("name", "home"):
        homes[group_of(name)].add(home)
    return homes


def is_second(name: str, home: str, now: datetime) -> bool:
    """Return whether another instance of that name is live; False without a home."""
    instance = group_of(name)
    homes = live_homes(now, instance).get(instance, set())
    return bool(home and homes) and home not in homes


def keep_home(name: str, home: str, *, has_own_token: bool, now: datetime) -> None:
    """Store the home of an accepted instance."""
    row = InstanceHome.objects.filter(name=name).first()
    if row is None or (row.home, row.has_own_token) != (home, has_own_token):
        values = {"home": home, "has_own_token": has_own_token, "since": now}
        InstanceHome.objects.update_or_create(name=name, defaults=values)
