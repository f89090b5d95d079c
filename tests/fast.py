"""`--fast`: the tests that start no server and simulate nothing, as an inner loop while one writes.

Whoever uses the database, or a fixture that starts a server, is left out by that; what starts
processes of its own is listed below. A test that was forgotten there fails under `--fast`, and its
message says so.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

SERVER_FIXTURES = frozenset({"db", "transactional_db", "servers", "valkey"})
LEFT_OUT = (
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
# Words in the command line of a server.
SERVERS = ("embedded", "dataplane", "mlflow", "postgres", "valkey-server", "tritonserver")


def add_option(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help="Leave out tests that start servers or simulate."
    )


def is_left_out(path: Path, config: pytest.Config) -> bool:
    """Whether a file or directory need not even be imported."""
    relative = path.relative_to(config.rootpath).as_posix()
    return config.getoption("--fast") and (relative + "/" * path.is_dir()).startswith(LEFT_OUT)


def needs_more(item: pytest.Item) -> bool:
    """Whether a test uses a server."""
    fixtures = set(getattr(item, "fixturenames", ()))
    return item.get_closest_marker("django_db") is not None or bool(fixtures & SERVER_FIXTURES)


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--fast"):
        return
    dropped = [item for item in items if needs_more(item)]
    config.hook.pytest_deselected(items=dropped)
    left_out = set(dropped)
    items[:] = [item for item in items if item not in left_out]


def refuse_servers(config: pytest.Config) -> None:
    if config.getoption("--fast"):
        sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise where a server is about to be started. Python calls it before whatever it audits."""
    if event == "subprocess.Popen":
        words = {Path(os.fsdecode(word)).name for word in arguments[1]}
        if started := words.intersection(SERVERS):
            raise AssertionError(f"It starts {started}: list it in LEFT_OUT of tests/fast.py.")
