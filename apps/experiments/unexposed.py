"""Units that met no experiment whose result is still made: their outcomes are kept, and count once
they meet one.
"""

from __future__ import annotations

from collections.abc import Collection

from django.db import connection

ASKED = """
    SELECT unit FROM unnest(%s::text[]) AS asked(unit) WHERE NOT EXISTS (
        SELECT 1 FROM experiments_experiment AS one JOIN experiments_exposurerow AS kept
            ON kept.experiment_id = one.id AND kept.unit = asked.unit
        WHERE one.state IN ('running', 'paused') OR one.refresh_due_at IS NOT NULL
    )
"""


def strangers_among(units: Collection[str]) -> set[str]:
    """Return those of `units` that met no such experiment yet."""
    asked = {unit for unit in units if "\x00" not in unit}
    if not asked:
        return set()
    with connection.cursor() as cursor:
        cursor.execute(ASKED, [sorted(asked)])
        return {unit for (unit,) in cursor}
