"""Which source an installation's results come from: PostgreSQL, unless a warehouse is named."""

from __future__ import annotations

from django.conf import settings

from apps.experiments.postgres import Postgres
from apps.experiments.sources import Source


def configured_source() -> Source:
    """Return the source that `INTERLOCK_WAREHOUSE_URL` names. Raises Unavailable without Ibis."""
    if not settings.WAREHOUSE_URL:
        return Postgres()
    # Ibis is an extra, and slow to import: only who names a warehouse needs it.
    from apps.experiments.warehouse.source import connect

    return connect(
        settings.WAREHOUSE_URL,
        exposures=settings.WAREHOUSE_EXPOSURES,
        outcomes=settings.WAREHOUSE_OUTCOMES,
        measured=settings.WAREHOUSE_MEASURED,
    )
