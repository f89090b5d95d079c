"""Reads for the identities on the page Fleet."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.conf import settings

from apps.identity.models import InstanceHome, InstanceToken, Refusal
from apps.identity.refusals import recent_refusals


@dataclass(frozen=True)
class ShownToken:
    token: InstanceToken
    state: str


@dataclass(frozen=True)
class Identities:
    """Tokens with their states, recent refusals, and processes without a token of their own."""

    tokens: list[ShownToken]
    refusals: list[Refusal]
    # Names of processes that reported with the shared token.
    sharing: list[str]
    are_required: bool

    @property
    def stamp(self) -> tuple[object, ...]:
        """Changes with all that the page shows, except for elapsed times."""
        tokens = [(shown.token.pk, shown.state) for shown in self.tokens]
        counts = [(row.pk, row.count) for row in self.refusals]
        return (*tokens, *counts, *self.sharing, self.are_required)


def read_identities(now: datetime) -> Identities:
    tokens = InstanceToken.objects.order_by("instance", "-id")
    sharing = InstanceHome.objects.filter(has_own_token=False).order_by("name")
    return Identities(
        tokens=[ShownToken(token, token.state(now)) for token in tokens],
        refusals=recent_refusals(now),
        sharing=list(sharing.values_list("name", flat=True)),
        are_required=settings.OWN_TOKENS_REQUIRED,
    )
