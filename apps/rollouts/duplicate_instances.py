"""Two instances of one name: the second is refused, for nobody could tell their reports apart.

What tells a second one from a restart is its home, the name of its state directory. A home that is
not the last one's takes the name over when the last one has gone silent or said that it stops.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from django.db.models import Q

from apps.identity.models import InstanceHome
from apps.rollouts.fleet_status import live_instances
from contract.message_signatures import group_of


def live_homes(now: datetime, instance: str = "") -> dict[str, set[str]]:
    """Return the homes from which instances' live processes report, by instance (of one alone).

    An instance with one worker has a process of its own name, one with several `edge/0` and so on.
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
    """Say whether another instance of that name is live; without a home nobody can tell."""
    instance = group_of(name)
    homes = live_homes(now, instance).get(instance, set())
    return bool(home and homes) and home not in homes


def keep_home(name: str, home: str, *, has_own_token: bool, now: datetime) -> None:
    """Note where an instance that was taken reports from."""
    row = InstanceHome.objects.filter(name=name).first()
    if row is None or (row.home, row.has_own_token) != (home, has_own_token):
        values = {"home": home, "has_own_token": has_own_token, "since": now}
        InstanceHome.objects.update_or_create(name=name, defaults=values)
