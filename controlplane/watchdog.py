"""Sends notifications about stopped control loops, independently of worker and beat.

It runs in a thread of the ingester. Worker and beat, and with them the delivery loop, may be dead,
so it delivers its messages itself. Pages, metrics and the API report a dead ingester.
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
CHECK_EVERY_S = 5.0


class Watchdog:
    """Checks the loops and notifies once about each that stops."""

    def __init__(self) -> None:
        # The loops that were late at the last check.
        self._late: set[str] = set()

    def check(self) -> list[str]:
        """Notify about loops that have become late since the last check; return their names."""
        late = {pulse.loop.name: pulse for pulse in read_pulses().late}
        new = [pulse for name, pulse in late.items() if name not in self._late]
        for pulse in new:
            log.error("loop.stopped %s: %s", pulse.loop.name, describe_pulse(pulse))
            notify_targets(pulse)
        self._late = set(late)
        if "delivery" in late:
            # Nothing else delivers: send all messages that are due.
            deliver_due()
        return [pulse.loop.name for pulse in new]

    def run(self, stop: Event) -> None:
        """Check every CHECK_EVERY_S seconds until `stop` is set; errors are logged."""
        while not stop.wait(CHECK_EVERY_S):
            try:
                self.check()
            except DatabaseError as error:
                log.warning("watchdog.failed: %s", error)
                connection.close()
            except Exception:
                log.exception("watchdog.failed")


def describe_pulse(pulse: Pulse) -> str:
    """Return a sentence: the stopped loop, the age of its last turn and the effect."""
    since = "has not run yet" if pulse.age_s is None else f"last ran {pulse.age_s:.0f} s ago"
    return f"{pulse.loop.turned_by} {since}: {pulse.loop.without_it}"


def notify_targets(pulse: Pulse) -> None:
    """Create a message for each active target of all models that subscribes to the event."""
    now = database_now()
    data = {"loop": pulse.loop.name, "reason": describe_pulse(pulse), "age_s": pulse.age_s}
    targets = NotificationTarget.objects.filter(model=None, is_active=True).order_by("pk")
    OutboxMessage.objects.bulk_create(
        build_message(target, EVENT, data, now)
        for target in targets
        if is_subscribed(EVENT, target.events)
    )


def start_watchdog(stop: Event) -> Thread:
    """Run a watchdog in a thread until `stop` is set."""
    thread = Thread(target=Watchdog().run, args=(stop,), daemon=True)
    thread.start()
    return thread
