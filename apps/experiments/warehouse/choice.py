"""Selects the source of an installation's results: PostgreSQL or the configured warehouse."""

from __future__ import annotations

from django.conf import settings

from apps.experiments.postgres import Postgres
from apps.experiments.sources import Source


def configured_source() -> Source:
    """Return the warehouse at `INTERLOCK_WAREHOUSE_URL`, else PostgreSQL.

    Raises Unavailable if a warehouse is configured and Ibis is not installed.
    """
    if not settings.WAREHOUSE_URL:
        return Postgres()
    # Ibis is an optional dependency and slow to import.
    from apps.experiments.warehouse.source import connect

    return connect(
        settings.WAREHOUSE_URL,
        exposures=settings.WAREHOUSE_EXPOSURES,
        outcomes=settings.WAREHOUSE_OUTCOMES,
        measured=settings.WAREHOUSE_MEASURED,
    )
