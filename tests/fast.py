"""`--fast` runs only tests that start no server and run no simulation, as a fast inner loop.

Tests that use the database or a fixture with a server are excluded automatically; tests that start
their own processes are listed below. A test that is missing in the list fails with `--fast` with a
message about the list.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

SERVER_FIXTURES = frozenset({"db", "transactional_db", "servers", "valkey"})
EXCLUDED = (
    "tests/bench/",
    "tests/e2e/",
    "tests/embedded/test_leftovers.py",
    "tests/embedded/test_postgres.py",
    "tests/embedded/test_selftest.py",
    "tests/embedded/test_stack.py",
    "tests/embedded/test_supervisor.py",
    "tests/embedded/test_triton.py",
    "tests/embedded/test_up.py",
    "tests/embedded/test_valkey.py",
    "tests/experiments/stats/",
    "tests/failures/test_correlated_errors.py",
    "tests/failures/test_dead_but_ready.py",
    "tests/failures/test_peeking_false_alarm.py",
    "tests/failures/test_pooled_steps.py",
    "tests/faults/",
    "tests/field/",
    "tests/fuzz/",
    "tests/dataplane/test_against_triton.py",
    "tests/models/test_any_onnx.py",
    "tests/rollouts/test_eprocess.py",
)
# Program names in the command lines of servers.
SERVERS = ("embedded", "dataplane", "mlflow", "postgres", "valkey-server", "tritonserver")


def add_option(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help="Exclude tests that start servers or simulate."
    )


def is_excluded(path: Path, config: pytest.Config) -> bool:
    """Return whether a file or directory is excluded and need not be imported."""
    relative = path.relative_to(config.rootpath).as_posix()
    return config.getoption("--fast") and (relative + "/" * path.is_dir()).startswith(EXCLUDED)


def needs_server(item: pytest.Item) -> bool:
    """Return whether a test uses a server."""
    fixtures = set(getattr(item, "fixturenames", ()))
    return item.get_closest_marker("django_db") is not None or bool(fixtures & SERVER_FIXTURES)


def exclude_tests(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--fast"):
        return
    dropped = [item for item in items if needs_server(item)]
    config.hook.pytest_deselected(items=dropped)
    excluded = set(dropped)
    items[:] = [item for item in items if item not in excluded]


def refuse_servers(config: pytest.Config) -> None:
    if config.getoption("--fast"):
        sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise if a server is about to start; Python calls this before every audited event."""
    if event == "subprocess.Popen":
        words = {Path(os.fsdecode(word)).name for word in arguments[1]}
        if started := words.intersection(SERVERS):
            raise AssertionError(
                f"The test starts {started}: list it in EXCLUDED of tests/fast.py."
            )
