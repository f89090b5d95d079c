"""Tells people of a control loop that has stopped, from a process that is none of the worker's.

The ingester runs it in a thread: worker and beat may be dead, and notifications with them, so it
delivers what it tells itself. Of a dead ingester the pages, the metrics and the API tell.
"""

from __future__ import annotations

import logging
from threading import Event, Thread

from django.db import DatabaseError, connection

from apps.lib.clock import database_now
from apps.notifications.delivery import deliver_due
from apps.notifications.events import is_subscribed
from apps.notifications.models import NotificationTarget, OutboxMessage
from apps.notifications.outbox import build_message
from controlplane.loop_health import Pulse, read_pulses

log = logging.getLogger(__name__)

EVENT = "loop.stopped"
LOOK_S = 5.0


class Watchdog:
    """Looks at the loops, and tells of each one that stops, once."""

    def __init__(self) -> None:
        # The loops that were late at the last look.
        self._late: set[str] = set()

    def look(self) -> list[str]:
        """Tell of the loops that are late since the last look; return their names."""
        late = {pulse.loop.name: pulse for pulse in read_pulses().late}
        new = [pulse for name, pulse in late.items() if name not in self._late]
        for pulse in new:
            log.error("loop.stopped %s: %s", pulse.loop.name, sentence(pulse))
            tell(pulse)
        self._late = set(late)
        if "delivery" in late:
            # Nobody else does it: what else is due is sent as well.
            deliver_due()
        return [pulse.loop.name for pulse in new]

    def run(self, stop: Event) -> None:
        """Look again and again until `stop` is set; what fails is tried again."""
        while not stop.wait(LOOK_S):
            try:
                self.look()
            except DatabaseError as error:
                log.warning("watchdog.failed: %s", error)
                connection.close()
            except Exception:
                log.exception("watchdog.failed")


def sentence(pulse: Pulse) -> str:
    """Return in words what has stopped, since when, and what that means."""
    since = "has not turned" if pulse.age_s is None else f"last turned {pulse.age_s:.0f} s ago"
    return f"{pulse.loop.turned_by} {since}: {pulse.loop.without_it}"


def tell(pulse: Pulse) -> None:
    """Write a message to each target of all models that wants it."""
    now = database_now()
    data = {"loop": pulse.loop.name, "reason": sentence(pulse), "age_s": pulse.age_s}
    targets = NotificationTarget.objects.filter(model=None, is_active=True).order_by("pk")
    OutboxMessage.objects.bulk_create(
        build_message(target, EVENT, data, now)
        for target in targets
        if is_subscribed(EVENT, target.events)
    )


def start_watchdog(stop: Event) -> Thread:
    """Run a watchdog in a thread of its own until `stop` is set."""
    thread = Thread(target=Watchdog().run, args=(stop,), daemon=True)
    thread.start()
    return thread
