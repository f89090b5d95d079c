"""Has data planes take this database's tables after it was restored from a backup.

A restored database has forgotten generations, and data planes refuse tables that are older than
theirs. In a new epoch every table is newer than all before, on every data plane, of any version.
Control planes that still run on the database that was replaced must be stopped: their tables are
refused from then on.
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
        parser.add_argument("--reason", required=True, help="what was restored, and to when")
        parser.add_argument("--yes", action="store_true", help="do not ask")
        parser.add_argument(
            "--epoch", type=int, help="its number, if not the one after the highest that is known"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        number = options["epoch"] or highest_epoch_known() + 1
        if not options["yes"]:
            self._ask(number)
        actor = Actor(_operator(), "manage.py start_epoch")
        try:
            epoch = start_epoch(
                reason=options["reason"], actor=actor, now=database_now(), number=number
            )
        except InterlockError as error:
            raise CommandError(error.message) from error
        self._say(epoch)

    def _ask(self, number: int) -> None:
        """Ask for the number: who types it has read what it means. Raises CommandError."""
        if not sys.stdin.isatty():
            raise CommandError("Nobody can be asked here: say --yes.")
        live = live_instances(database_now())
        self.stdout.write(
            f"The newest table of this database is generation {in_words(latest_generation())}."
        )
        for each in live:
            self.stdout.write(
                f"  instance {each.name} serves generation {in_words(each.applied_generation)}"
            )
        self.stdout.write(
            f"Epoch {number}: all data planes follow this database, whatever they serve now; what "
            "was measured under tables that it has forgotten is deleted; silent instances are not "
            "waited for; tables of any other control plane are refused. It cannot be undone."
        )
        if input(f"Type {number} to begin it: ").strip() != str(number):
            raise CommandError("Nothing has changed.")

    def _say(self, epoch: Epoch) -> None:
        self.stdout.write(
            f"epoch {epoch.number} began: generation {in_words(latest_generation())} is published; "
            f"generation {in_words(epoch.restored_generation)} was the newest before"
        )


def _operator() -> str:
    """Return who runs the command, as far as the system knows; containers often know no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
