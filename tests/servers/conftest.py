"""Says at the end of a run what it could not show."""

from __future__ import annotations

import pytest

from tests.servers.postgresql import PGBOUNCER


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if PGBOUNCER is None:
        terminalreporter.section("not shown on this machine")
        terminalreporter.line(
            "PgBouncer is not here: that turns are taken behind it was not tried. `./run debs` "
            "brings it."
        )
