"""Limit a tenant's outcomes to the units that the tenant sent requests for.

An exposure holds the tenants whose requests named the unit; an outcome holds its sender. Both wait
in spools of different instances and arrive in any order. So every outcome is stored, and whether it
counts is decided each time that unit values are computed. An outcome that seems to concern another
tenant's unit is counted as refused on arrival, so that operators see it.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from django.db import connection

from apps.models.models import Tenant
from apps.rollouts.states import LIVE_PHASES
from contract.messages import Outcome

# Length of the column `event_id`.
KEY_LENGTH_MAX = 200

# The condition under which an outcome counts for a unit of `exposed`, in an experiment or a rollout
# of the model `%(model)s`. It avoids IS NULL: without statistics the planner takes that for rare
# and would look up each unit's outcomes one by one.
COUNTS_FOR = """coalesce(outcome.tenant = exposed.tenant
        OR outcome.tenant = ANY(coalesce(exposed.also_tenants, ARRAY[]::varchar[])), TRUE)
    AND coalesce(%(model)s = ANY(outcome.models_opened), TRUE)"""
# The unit's other tenants after a later exposure: SQL over `kept`, the stored row, and `excluded`,
# the new one.
MERGED = """(
    SELECT array_agg(DISTINCT name) FROM unnest(
        kept.also_tenants::text[] || excluded.also_tenants::text[] || excluded.tenant::text
    ) AS name WHERE name <> kept.tenant
)"""
IS_NEW = """(
    NOT excluded.tenant = ANY(coalesce(kept.also_tenants, '{}') || kept.tenant)
    OR NOT coalesce(excluded.also_tenants, '{}')
        <@ (coalesce(kept.also_tenants, '{}') || kept.tenant)
)"""
# Units without an exposure are skipped: their `is_own` is NULL.
FOREIGN = """
    SELECT pair.unit, pair.tenant FROM unnest(%s::text[], %s::text[]) AS pair(unit, tenant)
    CROSS JOIN LATERAL (
        SELECT bool_or(
            met.tenant IS NULL OR met.tenant = pair.tenant
            OR coalesce(pair.tenant = ANY(met.also_tenants), FALSE)
        ) AS is_own
        FROM (
            SELECT kept.tenant, kept.also_tenants FROM experiments_experiment AS one
            JOIN experiments_exposurerow AS kept
                ON kept.experiment_id = one.id AND kept.unit = pair.unit
            WHERE one.state IN ('running', 'paused') OR one.refresh_due_at IS NOT NULL
            UNION ALL
            SELECT kept.tenant, kept.also_tenants FROM rollouts_rollout AS one
            JOIN experiments_rolloutexposure AS kept
                ON kept.rollout_id = one.id AND kept.unit = pair.unit
            WHERE one.phase = ANY(%s)
        ) AS met
    ) AS judged WHERE NOT judged.is_own
"""


def event_key(outcome: Outcome) -> str:
    """Return the stored event id of an outcome, unique per sender.

    A tenant's id is `@TENANT:ID`; tenant names contain neither `@` nor `:`. An id that gets too
    long is replaced by its hash.
    """
    tenant, event_id = outcome.tenant, outcome.event_id
    if tenant is None or (not tenant and not event_id.startswith("@")):
        return event_id
    key = f"@{tenant}:{event_id}"
    if len(key) <= KEY_LENGTH_MAX:
        return key
    return f"@{tenant}:#{blake2b(event_id.encode(), digest_size=32).hexdigest()}"


def find_foreign_units(outcomes: Iterable[Outcome]) -> set[tuple[str, str]]:
    """Return the (unit, tenant) pairs whose unit only other tenants sent requests for.

    Only live experiments and rollouts are searched.
    """
    pairs = sorted({(o.unit_id, o.tenant) for o in outcomes if o.unit_id and o.tenant is not None})
    # Without tenants, requests have no owner.
    if not pairs or not Tenant.objects.exists():
        return set()
    units, tenants = zip(*pairs, strict=True)
    with connection.cursor() as cursor:
        cursor.execute(FOREIGN, [list(units), list(tenants), sorted(LIVE_PHASES)])
        return set(cursor.fetchall())
