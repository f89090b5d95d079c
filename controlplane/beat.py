"""`python -m controlplane.beat` schedules the periodic tasks.

It knows the schedule and the broker but not the tasks: it must not import Django's models or use
the database, and so needs a third of the memory of a process with them. It starts Celery without
its command line, which imports an interactive shell.
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

# The maximum number of queued tasks: about one minute of the whole schedule. Without a limit beat
# would fill Redis while no worker runs. A task that is not queued is not lost: the next one of its
# kind does its work.
WAITING_MAX = 500
# Seconds between checks of the queue's length, and between warnings that it is full.
CHECK_S, WARN_S = 1.0, 60.0


class BoundedScheduler(Scheduler):
    """A scheduler that sends no task while WAITING_MAX tasks are queued."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._checked_at = self._warned_at = float("-inf")
        self._is_full = False

    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        if not self._has_room(producer or self.producer):
            return
        super().apply_entry(entry, producer=producer)

    def _has_room(self, producer: Any) -> bool:
        now = monotonic()
        if now - self._checked_at >= CHECK_S:
            self._checked_at = now
            try:
                self._is_full = self._waiting(producer) >= WAITING_MAX
            except Exception:
                # Sending uses the same broker and reports the error.
                self._is_full = False
        if self._is_full and now - self._warned_at >= WARN_S:
            self._warned_at = now
            log.warning(
                "beat.full: %d tasks are queued, no task is added; is a Celery worker running?",
                WAITING_MAX,
            )
        return not self._is_full

    def _waiting(self, producer: Any) -> int:
        queue = self.app.conf.task_default_queue
        try:
            return int(producer.channel.queue_declare(queue, passive=True).message_count)
        except ChannelError:
            # Redis does not store empty lists, so an empty queue does not exist.
            return 0


def main() -> None:
    """Run until a signal. All schedules are intervals, so no state is kept in a file."""
    broker.refuse_cluster_or_exit()
    # At INFO it would log every task.
    app.Beat(scheduler_cls="controlplane.beat:BoundedScheduler", loglevel="WARNING").run()


if __name__ == "__main__":
    main()
