"""Which units met which side of a rollout's split, for guardrails on outcomes.

A row keeps the first meeting with each side, so that the order in which meetings arrive, or a
repeated delivery, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection

from apps.rollouts.models import Rollout
from contract.bucketing import bucket
from contract.routing import BASELINE, CANARY, STABLE

SIDES = {CANARY, STABLE, BASELINE}

UPSERT_MEETINGS = """
    INSERT INTO experiments_rolloutexposure AS kept
        (rollout_id, unit, bucket, canary_at, control_at)
    SELECT * FROM unnest(
        %s::uuid[], %s::text[], %s::int[], %s::timestamptz[], %s::timestamptz[])
    ON CONFLICT (rollout_id, unit) DO UPDATE SET
        canary_at = least(kept.canary_at, excluded.canary_at),
        control_at = least(kept.control_at, excluded.control_at)
    WHERE least(kept.canary_at, excluded.canary_at) IS DISTINCT FROM kept.canary_at
        OR least(kept.control_at, excluded.control_at) IS DISTINCT FROM kept.control_at
"""


@dataclass(frozen=True)
class Meeting:
    """A unit met a side of the rollout's split."""

    rollout_id: UUID
    unit: str
    is_canary: bool
    at: datetime


def known_salts(ids: Iterable[UUID]) -> dict[UUID, str]:
    """Return the salts of those ids that are rollouts."""
    return dict(Rollout.objects.filter(pk__in=list(ids)).values_list("pk", "salt"))


def write_meetings(meetings: Sequence[Meeting], salts: dict[UUID, str]) -> None:
    """Keep the first meeting of each unit with each side. Runs in the caller's transaction."""
    first: dict[tuple[UUID, str], dict[bool, datetime]] = {}
    for meeting in meetings:
        sides = first.setdefault((meeting.rollout_id, meeting.unit), {})
        sides[meeting.is_canary] = min(sides.get(meeting.is_canary, meeting.at), meeting.at)
    if not first:
        return
    keys = sorted(first)
    columns: list[list[Any]] = [
        [pk for pk, _ in keys],
        [unit for _, unit in keys],
        [bucket(salts[pk], unit) for pk, unit in keys],
        [first[key].get(True) for key in keys],
        [first[key].get(False) for key in keys],
    ]
    with connection.cursor() as cursor:
        cursor.execute(UPSERT_MEETINGS, columns)
