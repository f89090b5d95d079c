"""`manage.py ingest`: one consumer of the streams; start as many as the load needs."""

from __future__ import annotations

import os
import signal
import socket
from threading import Event
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from apps.lib.redis_client import refuse_cluster
from controlplane.ingest import Ingester, connect
from controlplane.watchdog import start_watchdog


class Command(BaseCommand):
    help = "Moves telemetry, exposures and outcomes from the Redis streams into PostgreSQL."

    # They load every page; a consumer that was killed had better be back at once.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--consumer",
            default=f"{socket.gethostname()}-{os.getpid()}",
            help="name in the consumer group; two running consumers must not share one",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        stop = Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        refuse_cluster()
        start_watchdog(stop)
        with connect() as client:
            Ingester(client, options["consumer"]).run(stop)
