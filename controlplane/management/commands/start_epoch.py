"""Makes data planes accept the tables of a database that was restored from a backup.

A restored database has lost the latest generations, and data planes refuse tables that are older
than theirs. Every table of a new epoch is newer than all earlier tables, on every data plane of any
version. Stop control planes that still use the replaced database: their tables are refused.
"""

from __future__ import annotations

import getpass
import os
import sys
from argparse import RawDescriptionHelpFormatter
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.lib.actors import Actor
from apps.lib.clock import database_now
from apps.lib.errors import InterlockError
from apps.rollouts.epochs import highest_epoch_known, latest_generation
from apps.rollouts.fleet_status import live_instances
from apps.rollouts.maintenance import start_epoch
from apps.rollouts.models import Epoch
from contract.generations import in_words


class Command(BaseCommand):
    help = __doc__ or ""

    def add_arguments(self, parser: CommandParser) -> None:
        parser.formatter_class = RawDescriptionHelpFormatter
        parser.add_argument("--reason", required=True, help="the restored backup and its time")
        parser.add_argument("--yes", action="store_true", help="start without confirmation")
        parser.add_argument(
            "--epoch", type=int, help="the epoch's number (default: the highest known number + 1)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        number = options["epoch"] or highest_epoch_known() + 1
        if not options["yes"]:
            self._confirm(number)
        actor = Actor(_operator(), "manage.py start_epoch")
        try:
            epoch = start_epoch(
                reason=options["reason"], actor=actor, now=database_now(), number=number
            )
        except InterlockError as error:
            raise CommandError(error.message) from error
        self._print_result(epoch)

    def _confirm(self, number: int) -> None:
        """Print the consequences and ask for the number. Raises CommandError."""
        if not sys.stdin.isatty():
            raise CommandError("Standard input is not a terminal: confirm with --yes.")
        live = live_instances(database_now())
        self.stdout.write(
            f"The newest table of this database is generation {in_words(latest_generation())}."
        )
        for each in live:
            self.stdout.write(
                f"  instance {each.name} serves generation {in_words(each.applied_generation)}"
            )
        self.stdout.write(
            f"Epoch {number}: all data planes switch to the tables of this database, also those "
            "that serve a newer generation. Measurements under generations that this database does "
            "not know are deleted. Rollouts do not wait for silent instances. Tables of any other "
            "control plane are refused. This cannot be undone."
        )
        if input(f"Type {number} to start the epoch: ").strip() != str(number):
            raise CommandError("Not confirmed; nothing has changed.")

    def _print_result(self, epoch: Epoch) -> None:
        self.stdout.write(
            f"epoch {epoch.number} started: published generation {in_words(latest_generation())}; "
            f"the latest generation before was {in_words(epoch.restored_generation)}"
        )


def _operator() -> str:
    """Return the operator's user name, or the uid: a container often has no user names."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
