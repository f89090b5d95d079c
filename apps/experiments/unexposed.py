"""Find units without an exposure to an experiment that is still analysed.

Their outcomes are stored, and count once the unit has an exposure.
"""

from __future__ import annotations

from collections.abc import Collection

from django.db import connection

UNEXPOSED = """
    SELECT unit FROM unnest(%s::text[]) AS sent(unit) WHERE NOT EXISTS (
        SELECT 1 FROM experiments_experiment AS one JOIN experiments_exposurerow AS kept
            ON kept.experiment_id = one.id AND kept.unit = sent.unit
        WHERE one.state IN ('running', 'paused') OR one.refresh_due_at IS NOT NULL
    )
"""


def find_unexposed(units: Collection[str]) -> set[str]:
    """Return those of `units` without such an exposure."""
    candidates = {unit for unit in units if "\x00" not in unit}
    if not candidates:
        return set()
    with connection.cursor() as cursor:
        cursor.execute(UNEXPOSED, [sorted(candidates)])
        return {unit for (unit,) in cursor}
