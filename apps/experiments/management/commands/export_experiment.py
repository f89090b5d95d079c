"""`manage.py export_experiment NAME DIRECTORY`: write an experiment's rows to Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.experiments.models import Experiment
from apps.experiments.warehouse.export import export_parquet


class Command(BaseCommand):
    help = "Write an experiment's exposures, outcomes and measurements as Parquet."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("directory", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        experiment = Experiment.objects.filter(name=options["name"]).first()
        if experiment is None:
            raise CommandError(f"There is no experiment named {options['name']}.")
        try:
            files = export_parquet(experiment, options["directory"])
        except OSError as error:
            raise CommandError(str(error)) from None
        for path in (files.exposures, files.outcomes, files.measured):
            self.stdout.write(f"{path}  {path.stat().st_size:,} bytes")
