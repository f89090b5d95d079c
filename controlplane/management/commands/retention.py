"""`manage.py retention`: drop what is due now, as the workers' task does each minute."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from apps.lib.clock import database_now
from controlplane.models import RetentionRun
from controlplane.retention.run import run_retention


class Command(BaseCommand):
    help = "Drop rows that are older than they are kept (INTERLOCK_KEEP_…_DAYS)."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--within", type=float, default=3_600.0, help="seconds at most")

    def handle(self, *args: Any, **options: Any) -> None:
        freed = run_retention(database_now(), options["within"])
        for run in RetentionRun.objects.all():
            told = run.error or run.held or ("more is due" if run.is_behind else "")
            self.stdout.write(f"{run.name}: {run.rows_total:,} rows dropped so far. {told}".strip())
        self.stdout.write(f"dropped now: {freed.rows:,} rows, {freed.bytes:,} bytes")
