"""`manage.py analyse_experiment NAME`: its report from a warehouse or from Parquet files.

The definition is the one in PostgreSQL; exposures and outcomes come from where is said. Nothing is
stored.
"""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.experiments.gather import gather
from apps.experiments.models import Experiment
from apps.experiments.stats.report import make_report
from apps.experiments.warehouse.source import connect
from apps.lib.clock import database_now
from apps.lib.errors import InterlockError


class Command(BaseCommand):
    help = "Print an experiment's report from Parquet files or a warehouse."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--url", default="duckdb://", help="what Ibis connects to")
        parser.add_argument("--exposures", required=True, help="a table, or a glob of Parquet")
        parser.add_argument("--outcomes", required=True, help="a table, or a glob of Parquet")
        parser.add_argument("--measured", default="", help="a table, or a glob of Parquet")
        parser.add_argument("--json", action="store_true", help="the whole report")

    def handle(self, *args: Any, **options: Any) -> None:
        experiment = Experiment.objects.filter(name=options["name"]).first()
        if experiment is None:
            raise CommandError(f"There is no experiment named {options['name']}.")
        try:
            datasets = {name: options[name] for name in ("exposures", "outcomes", "measured")}
            found = gather(experiment, database_now(), connect(options["url"], **datasets))
            report = make_report(
                found.data,
                alpha=experiment.alpha_ppm / 1_000_000,
                planned_units=experiment.planned_units,
                is_final=experiment.ended_at is not None,
            )
        except (InterlockError, ValueError) as error:
            raise CommandError(str(error)) from None
        if options["json"]:
            self.stdout.write(json.dumps(report.to_json(), indent=2))
            return
        self.stdout.write(report.verdict)
        for metric in report.metrics:
            self.stdout.write(f"  {metric.name}: {metric.verdict}")
