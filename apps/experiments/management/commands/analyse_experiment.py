"""`manage.py analyse_experiment NAME`: print a result from a warehouse or from Parquet files.

The experiment's definition is read from PostgreSQL, exposures and outcomes from the arguments.
Nothing is stored.
"""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.experiments.models import Experiment
from apps.experiments.results import compute_result
from apps.experiments.warehouse.source import connect
from apps.lib.clock import database_now
from apps.lib.errors import Unavailable


class Command(BaseCommand):
    help = "Print an experiment's result from Parquet files or a warehouse."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--url", default="duckdb://", help="URL that Ibis connects to")
        parser.add_argument("--exposures", required=True, help="a table or a Parquet glob")
        parser.add_argument("--outcomes", required=True, help="a table or a Parquet glob")
        parser.add_argument("--measured", default="", help="a table or a Parquet glob")
        parser.add_argument("--json", action="store_true", help="print the result as in REST")

    def handle(self, *args: Any, **options: Any) -> None:
        experiment = Experiment.objects.filter(name=options["name"]).first()
        if experiment is None:
            raise CommandError(f"There is no experiment named {options['name']}.")
        datasets = {name: options[name] for name in ("exposures", "outcomes", "measured")}
        try:
            source = connect(options["url"], **datasets)
        except Unavailable as error:
            raise CommandError(str(error)) from None
        is_final = experiment.ended_at is not None
        computation = compute_result(experiment, database_now(), is_final=is_final, source=source)
        if computation.result is None:
            raise CommandError(computation.error)
        if options["json"]:
            self.stdout.write(json.dumps(computation.result, indent=2))
            return
        self.stdout.write(computation.result["verdict"])
        for metric in computation.result["metrics"]:
            self.stdout.write(f"  {metric['name']}: {metric['verdict']}")
