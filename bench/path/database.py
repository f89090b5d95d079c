"""A real PostgreSQL with a simulated clock: `clock_timestamp()` returns the simulation's time.

The product reads the time from the database (apps.lib.clock), so that it needs no change.
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

# A function in a schema before pg_catalog in the search path replaces the server's own.
MAKE_CLOCK = """
    CREATE SCHEMA IF NOT EXISTS simulated;
    CREATE OR REPLACE FUNCTION simulated.clock_timestamp() RETURNS timestamptz
        LANGUAGE sql STABLE AS $$ SELECT current_setting('simulated.now')::timestamptz $$;
    SET search_path = simulated, pg_catalog, public;
    SET synchronous_commit = off;
"""


@contextmanager
def simulated_database() -> Iterator[None]:
    """Run a server with a new, migrated database and a simulated clock until the block ends."""
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
    """Make this session's `clock_timestamp()` return the time of `set_clock`."""
    with connection.cursor() as cursor:
        cursor.execute(MAKE_CLOCK)


def set_clock(unix_s: float) -> None:
    """Set the database's clock in Unix seconds."""
    at = datetime.fromtimestamp(unix_s, UTC).isoformat()
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('simulated.now', %s, false)", [at])
