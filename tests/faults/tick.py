"""Runs the workers' ticks for a number of seconds, in the environment of a stack."""

from __future__ import annotations

import sys
from time import monotonic, sleep

import django


def main() -> None:
    """Tick twice a second."""
    django.setup()

    from apps.models.deployments import reconcile_deployments
    from apps.rollouts.tick import tick_rollouts

    until = monotonic() + float(sys.argv[1])
    while monotonic() < until:
        reconcile_deployments()
        tick_rollouts()
        sleep(0.5)


if __name__ == "__main__":
    main()
