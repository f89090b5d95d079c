"""A worker process that delivers until it is killed; DATABASE_URL names the database."""

from __future__ import annotations

import sys
from time import monotonic, sleep

import django


def main() -> None:
    """Deliver due messages for the number of seconds in the first argument."""
    django.setup()

    from apps.notifications.delivery import deliver_due

    until = monotonic() + float(sys.argv[1])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while monotonic() < until:
        deliver_due()
        sleep(0.05)


if __name__ == "__main__":
    main()
