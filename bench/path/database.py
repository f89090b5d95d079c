"""A real PostgreSQL whose clock is ours: `clock_timestamp()` answers what a simulation says.

The product reads the time from the database (apps.lib.clock), so that nothing of it is changed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from django.conf import settings
from django.db import connection, connections

from controlplane import env
from embedded.stack import running

# A function of a schema that is searched before pg_catalog takes the place of the server's own.
MAKE_CLOCK = """
    CREATE SCHEMA IF NOT EXISTS simulated;
    CREATE OR REPLACE FUNCTION simulated.clock_timestamp() RETURNS timestamptz
        LANGUAGE sql STABLE AS $$ SELECT current_setting('simulated.now')::timestamptz $$;
    SET search_path = simulated, pg_catalog, public;
    SET synchronous_commit = off;
"""


@contextmanager
def simulated_database() -> Iterator[None]:
    """A new, migrated database with a simulated clock, on a server that ends with the block."""
    with (
        tempfile.TemporaryDirectory(prefix="interlock-path-") as directory,
        running(Path(directory), only={"postgres", "redis"}) as stack,
    ):
        before = os.environ.get("DATABASE_URL")
        os.environ["DATABASE_URL"] = stack.database_url
        connections["default"].settings_dict.update(env.database("DATABASE_URL", ""))
        settings.REDIS_URL = stack.redis_url
        name = connection.settings_dict["NAME"]
        try:
            connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
            simulate_clock()
            yield
        finally:
            connection.creation.destroy_test_db(name, verbosity=0)
            connections.close_all()
            os.environ.pop("DATABASE_URL")
            if before is not None:
                os.environ["DATABASE_URL"] = before


def simulate_clock() -> None:
    """Let this session's `clock_timestamp()` be what `set_clock` says."""
    with connection.cursor() as cursor:
        cursor.execute(MAKE_CLOCK)


def set_clock(unix_s: float) -> None:
    """Set the database's clock."""
    at = datetime.fromtimestamp(unix_s, UTC).isoformat()
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('simulated.now', %s, false)", [at])
