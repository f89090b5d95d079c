"""Creates an API token for a user and prints it once, for machines without a browser."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError, CommandParser

from controlplane.models import ApiToken


class Command(BaseCommand):
    help = __doc__ or ""

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("username")
        parser.add_argument("name", help="the token's use; a token with this name is replaced")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["username"]).first()
        if user is None:
            raise CommandError(f"Unknown user {options['username']!r}.")
        _, secret = ApiToken.issue(user_id=user.pk, name=options["name"])
        self.stdout.write(secret)
