"""`python -m controlplane.beat`: the clock that wakes the ticks.

It knows the schedule and the broker, and none of the tasks: it needs neither Django's models nor
the database, and takes a third of the memory of a process that has them. Started past Celery's
command line, which imports an interactive shell.
"""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

# Without fixups Celery does not set Django up.
app = Celery("interlock", fixups=[])
app.config_from_object("django.conf:settings", namespace="CELERY")


def main() -> None:
    """Run until a signal. Every schedule is an interval: nothing is worth keeping in a file."""
    # Below WARNING it would tell of each tick.
    app.Beat(scheduler_cls="celery.beat.Scheduler", loglevel="WARNING").run()


if __name__ == "__main__":
    main()
