"""Run in an environment that names the database: a worker that registers until it is killed."""

from __future__ import annotations

import sys
from time import monotonic, sleep

import django


def main() -> None:
    """Do what waits for as many seconds as the argument says."""
    django.setup()

    from apps.models.registration_jobs import work_registrations

    until = monotonic() + float(sys.argv[1])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while monotonic() < until:
        work_registrations()
        sleep(0.05)


if __name__ == "__main__":
    main()
