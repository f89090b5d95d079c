"""Store the units exposed to each side of a rollout's split, for guardrails on outcomes.

A row holds the first exposure to each side, so the order of arrival and repeated deliveries do not
matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection

from apps.experiments.tenant_scope import IS_NEW, MERGED
from apps.rollouts.models import Rollout
from contract.bucketing import bucket
from contract.routing import BASELINE, CANARY, STABLE

SIDES = {CANARY, STABLE, BASELINE}

# `unnest` would flatten a nested array: the other tenants of a unit are passed as one JSON list.
UPSERT_SIDES = f"""
    INSERT INTO experiments_rolloutexposure AS kept
        (rollout_id, unit, bucket, canary_at, control_at, tenant, also_tenants)
    SELECT rollout_id, unit, bucket, canary_at, control_at, tenant,
        CASE WHEN others IS NOT NULL THEN ARRAY(SELECT jsonb_array_elements_text(others::jsonb)) END
    FROM unnest(
        %s::uuid[], %s::text[], %s::int[], %s::timestamptz[], %s::timestamptz[], %s::text[],
        %s::text[]
    ) AS new(rollout_id, unit, bucket, canary_at, control_at, tenant, others)
    ON CONFLICT (rollout_id, unit) DO UPDATE SET
        canary_at = least(kept.canary_at, excluded.canary_at),
        control_at = least(kept.control_at, excluded.control_at),
        also_tenants = {MERGED}
    WHERE least(kept.canary_at, excluded.canary_at) IS DISTINCT FROM kept.canary_at
        OR least(kept.control_at, excluded.control_at) IS DISTINCT FROM kept.control_at
        OR {IS_NEW}
"""  # noqa: S608 (constant conditions)


@dataclass(frozen=True)
class SideExposure:
    """An exposure of a unit to a side of a rollout's split, by a request of `tenant`."""

    rollout_id: UUID
    unit: str
    is_canary: bool
    at: datetime
    tenant: str = ""


def known_salts(ids: Iterable[UUID]) -> dict[UUID, str]:
    """Return the salts of the rollouts among `ids`, by id."""
    return dict(Rollout.objects.filter(pk__in=list(ids)).values_list("pk", "salt"))


def write_side_exposures(exposures: Sequence[SideExposure], salts: dict[UUID, str]) -> None:
    """Store the first exposure of each unit to each side. Runs in the caller's transaction."""
    first: dict[tuple[UUID, str], dict[bool, datetime]] = {}
    # An ordered set; any tenant may be the first.
    tenants: dict[tuple[UUID, str], dict[str, None]] = {}
    for exposure in exposures:
        sides = first.setdefault((exposure.rollout_id, exposure.unit), {})
        sides[exposure.is_canary] = min(sides.get(exposure.is_canary, exposure.at), exposure.at)
        tenants.setdefault((exposure.rollout_id, exposure.unit), {})[exposure.tenant] = None
    if not first:
        return
    keys = sorted(first)
    columns: list[list[Any]] = [
        [pk for pk, _ in keys],
        [unit for _, unit in keys],
        [bucket(salts[pk], unit) for pk, unit in keys],
        [first[key].get(True) for key in keys],
        [first[key].get(False) for key in keys],
        [next(iter(tenants[key])) for key in keys],
        [_others(list(tenants[key])) for key in keys],
    ]
    with connection.cursor() as cursor:
        cursor.execute(UPSERT_SIDES, columns)


def _others(tenants: list[str]) -> str | None:
    return json.dumps(tenants[1:]) if len(tenants) > 1 else None
