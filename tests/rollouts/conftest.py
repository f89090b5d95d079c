"""Says at the end of a run what it could not show."""

from __future__ import annotations

import pytest

from tests.rollouts.outside import BINARY


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if BINARY is None:
        terminalreporter.section("not shown on this machine")
        terminalreporter.line(
            "Prometheus is not here: its checks ran against a server that speaks its API. "
            "`./run debs` brings the real one."
        )
