"""`manage.py ingest` runs one consumer of the streams; run several for a high load."""

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
    help = "Move telemetry, exposures and outcomes from the Redis streams into PostgreSQL."

    # The checks load every page; a killed consumer should restart at once.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--consumer",
            default=f"{socket.gethostname()}-{os.getpid()}",
            help="name in the consumer group; unique among running consumers",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        stop = Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        refuse_cluster()
        start_watchdog(stop)
        with connect() as client:
            Ingester(client, options["consumer"]).run(stop)
