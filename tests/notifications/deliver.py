"""Run in an environment that names the database: a worker that delivers until it is killed."""

from __future__ import annotations

import sys
from time import monotonic, sleep

import django


def main() -> None:
    """Deliver what is due for as many seconds as the argument says."""
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
