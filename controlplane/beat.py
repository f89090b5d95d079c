"""`python -m controlplane.beat`: the clock that wakes the ticks.

It knows the schedule and the broker, and none of the tasks: it needs neither Django's models nor
the database, and takes a third of the memory of a process that has them. Started past Celery's
command line, which imports an interactive shell.
"""

from __future__ import annotations

import logging
import os
from time import monotonic
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from kombu.exceptions import ChannelError

from controlplane import broker

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

broker.use()
# Without fixups Celery does not set Django up.
app = Celery("interlock", fixups=[])
app.config_from_object("django.conf:settings", namespace="CELERY")

log = logging.getLogger(__name__)

# Ticks that wait: about a minute of all of them. Dead workers leave those behind that beat sends,
# and so they would fill Redis; of ticks that wait nothing is lost but their number.
WAITING_MAX = 500
# How often the queue is looked at, and how often it is said that it is full.
LOOK_S, SAY_S = 1.0, 60.0


class BoundedScheduler(Scheduler):
    """Sends no tick while WAITING_MAX wait for a worker."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._looked_at = self._said_at = float("-inf")
        self._is_full = False

    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        if not self._has_room(producer or self.producer):
            return
        super().apply_entry(entry, producer=producer)

    def _has_room(self, producer: Any) -> bool:
        now = monotonic()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            try:
                self._is_full = self._waiting(producer) >= WAITING_MAX
            except Exception:
                # Whoever sends meets the same broker, and says what is wrong with it.
                self._is_full = False
        if self._is_full and now - self._said_at >= SAY_S:
            self._said_at = now
            log.warning(
                "beat.full: %d ticks wait, none is added; is a Celery worker running?", WAITING_MAX
            )
        return not self._is_full

    def _waiting(self, producer: Any) -> int:
        queue = self.app.conf.task_default_queue
        try:
            return int(producer.channel.queue_declare(queue, passive=True).message_count)
        except ChannelError:
            # Redis has no empty lists.
            return 0


def main() -> None:
    """Run until a signal. Every schedule is an interval: nothing is worth keeping in a file."""
    broker.refuse_cluster_or_exit()
    # Below WARNING it would tell of each tick.
    app.Beat(scheduler_cls="controlplane.beat:BoundedScheduler", loglevel="WARNING").run()


if __name__ == "__main__":
    main()
