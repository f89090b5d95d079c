"""Whose outcomes count: a tenant's for the units that it asked about, and for no others.

Exposures say which tenants asked about a unit, outcomes who sent them. What comes first may arrive
last, since both wait on the disks of different instances: so every outcome is kept, and whether it
counts is decided whenever values are made. What seems to be of others' units is counted when it
arrives, for somebody to see.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from django.db import connection

from apps.models.models import Tenant
from apps.rollouts.states import LIVE_PHASES
from contract.messages import Outcome

# As long as the column is.
KEY_LENGTH_MAX = 200

# The condition that an outcome counts for a unit of `exposed`, in an experiment or a rollout of
# the model `%(model)s`. Not by IS NULL, which the planner takes for rare where it knows nothing: it
# would look for each unit's outcomes one by one.
COUNTS_FOR = """coalesce(outcome.tenant = exposed.tenant
        OR outcome.tenant = ANY(coalesce(exposed.also_tenants, ARRAY[]::varchar[])), TRUE)
    AND coalesce(%(model)s = ANY(outcome.models_opened), TRUE)"""
# What a later exposure adds to whom is known to have asked about a unit: SQL of `kept`, the row
# that there is, and `excluded`.
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
# Of units that nobody is known to have asked about nothing can be said.
FOREIGN = """
    SELECT asked.unit, asked.tenant FROM unnest(%s::text[], %s::text[]) AS asked(unit, tenant)
    CROSS JOIN LATERAL (
        SELECT bool_or(
            met.tenant IS NULL OR met.tenant = asked.tenant
            OR coalesce(asked.tenant = ANY(met.also_tenants), FALSE)
        ) AS is_own
        FROM (
            SELECT kept.tenant, kept.also_tenants FROM experiments_experiment AS one
            JOIN experiments_exposurerow AS kept
                ON kept.experiment_id = one.id AND kept.unit = asked.unit
            WHERE one.state IN ('running', 'paused') OR one.refresh_due_at IS NOT NULL
            UNION ALL
            SELECT kept.tenant, kept.also_tenants FROM rollouts_rollout AS one
            JOIN experiments_rolloutexposure AS kept
                ON kept.rollout_id = one.id AND kept.unit = asked.unit
            WHERE one.phase = ANY(%s)
        ) AS met
    ) AS judged WHERE NOT judged.is_own
"""


def event_key(outcome: Outcome) -> str:
    """Return what an outcome's event id is kept as: no sender takes the id of another's event.

    Names of tenants hold neither `@` nor `:`. One that gets too long stands there as its hash.
    """
    tenant, event_id = outcome.tenant, outcome.event_id
    if tenant is None or (not tenant and not event_id.startswith("@")):
        return event_id
    key = f"@{tenant}:{event_id}"
    if len(key) <= KEY_LENGTH_MAX:
        return key
    return f"@{tenant}:#{blake2b(event_id.encode(), digest_size=32).hexdigest()}"


def others_units(outcomes: Iterable[Outcome]) -> set[tuple[str, str]]:
    """Return the (unit, tenant) of outcomes whose unit others asked about, and its sender did not.

    Only what goes on is looked at.
    """
    asked = sorted({(o.unit_id, o.tenant) for o in outcomes if o.unit_id and o.tenant is not None})
    # Without tenants all requests are nobody's.
    if not asked or not Tenant.objects.exists():
        return set()
    units, tenants = zip(*asked, strict=True)
    with connection.cursor() as cursor:
        cursor.execute(FOREIGN, [list(units), list(tenants), sorted(LIVE_PHASES)])
        return set(cursor.fetchall())
