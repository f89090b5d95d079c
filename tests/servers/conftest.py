"""Reports at the end of a run what could not be tested."""

from __future__ import annotations

import pytest

from tests.servers.postgresql import PGBOUNCER


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if PGBOUNCER is None:
        terminalreporter.section("not tested on this machine")
        terminalreporter.line(
            "PgBouncer is not installed, so locks behind it were not tested. `./run debs` "
            "installs it."
        )
