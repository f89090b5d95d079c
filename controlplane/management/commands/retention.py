"""`manage.py retention` deletes expired rows now, as the workers' task does every minute."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from apps.lib.clock import database_now
from controlplane.models import RetentionRun
from controlplane.retention.run import run_retention


class Command(BaseCommand):
    help = "Delete rows that are older than INTERLOCK_KEEP_…_DAYS."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--within", type=float, default=3_600.0, help="maximum seconds")

    def handle(self, *args: Any, **options: Any) -> None:
        freed = run_retention(database_now(), options["within"])
        for run in RetentionRun.objects.all():
            reason = run.error or run.held or ("more rows are due" if run.is_behind else "")
            line = f"{run.name}: {run.rows_total:,} rows deleted in total. {reason}"
            self.stdout.write(line.strip())
        self.stdout.write(f"deleted now: {freed.rows:,} rows, {freed.bytes:,} bytes")
