"""Distributes the tests to two workers and orders them.

A file's tests stay together on one worker, so that its servers start once. Each worker has its own
servers (`servers` in conftest.py). `-n 0` runs everything in one process.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

WORKERS = 2
# Directories whose tests share one whole stack. They run one after the other, as two stacks at
# once would overload a small machine.
WHOLE_STACKS = ("tests/e2e/", "tests/faults/")
# Files with long tests that share nothing.
SPLIT = ("tests/bench/test_bars.py",)
# The longest tests start first; otherwise one worker would run them alone at the end.
FIRST = (WHOLE_STACKS, SPLIT, ("tests/models/test_real_mlflow.py",))
# Tests that are sensitive to timing start last, when no whole stack uses the other core.
LAST = ("tests/dataplane/", "tests/embedded/", "tests/field/", "tests/notifications/")
# The other workers yield to the worker with the whole stacks, whose tests are under load.
NICENESS = 5
# A dictionary, as it keeps its order.
FILES_RUN = pytest.StashKey[dict[str, None]]()


def group_of(nodeid: str) -> str:
    """Return the name of the group of tests that runs on one worker."""
    if nodeid.startswith(WHOLE_STACKS):
        return "whole stacks"
    return nodeid if nodeid.startswith(SPLIT) else nodeid.partition("::")[0]


class Sharing(LoadScopeScheduling):
    """Schedules groups in the order of collection; xdist would start with the largest group."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)

    @property
    def nodes(self) -> list[WorkerController]:
        """The workers by name: the first one gets the first group, the whole stacks."""
        return sorted(super().nodes, key=lambda node: str(node.gateway.id))


def make_scheduler(config: pytest.Config, log: Any) -> Sharing:
    config.option.loadscopereorder = False
    return Sharing(config, log)


def has_external_servers() -> bool:
    """Return whether a developer's servers are used: with one Redis there is only one worker."""
    return "DATABASE_URL" in os.environ and "REDIS_URL" in os.environ


def yield_to_the_first() -> None:
    """Lower the priority of all workers but the first."""
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        os.nice(NICENESS)


def workers_for(config: pytest.Config) -> int:
    """Return the number of workers for `-n auto`: 0 for single files and for printed output."""
    are_files = all(argument.partition("::")[0].endswith(".py") for argument in config.args)
    return 0 if are_files or has_external_servers() or config.option.capture == "no" else WORKERS


def put_in_order(items: list[pytest.Item]) -> None:
    """Keep each group together, long groups first; otherwise keep the random order."""
    first: dict[str, int] = {}
    for position, item in enumerate(items):
        for place in (group_of(item.nodeid), directory_of(item.nodeid)):
            first.setdefault(place, position)
    items.sort(
        key=lambda item: (
            rank_of(item.nodeid),
            first[group_of(item.nodeid)],
            # The second whole stack starts when the first has ended.
            first[directory_of(item.nodeid)],
        )
    )


def rank_of(nodeid: str) -> int:
    rank = next((i for i, starts in enumerate(FIRST) if nodeid.startswith(starts)), len(FIRST))
    return rank + nodeid.startswith(LAST)


def directory_of(nodeid: str) -> str:
    return nodeid.partition("::")[0].rpartition("/")[0] + "/"


def files_before(item: pytest.Item) -> tuple[str, str] | None:
    """Return a section for a failure's report: the files that the worker has run, in order.

    None in a run without workers.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    files = " ".join(item.config.stash.setdefault(FILES_RUN, {}))
    return (f"files that {worker} had run", files) if worker else None


def record_file(item: pytest.Item) -> None:
    item.config.stash.setdefault(FILES_RUN, {})[item.nodeid.partition("::")[0]] = None
