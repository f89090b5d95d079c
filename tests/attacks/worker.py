"""A worker that processes registrations until it is killed; the environment names the database."""

from __future__ import annotations

import sys
from time import monotonic, sleep

import django


def main() -> None:
    """Process waiting registrations for the number of seconds in the argument."""
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
