"""How two workers share the tests, and in what order.

A file's tests stay together on one worker, so that whatever the file starts is started once. Each
worker has its own servers (`servers` in conftest.py). `-n 0` runs everything in one process.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

WORKERS = 2
# Directories of which each has one whole stack for all of its tests. They run one after the other:
# two stacks at once would leave neither enough of a small machine.
WHOLE_STACKS = ("tests/e2e/", "tests/faults/")
# Files of which each test is long and shares nothing with the next.
SPLIT = ("tests/bench/test_bars.py",)
# What starts first: the longest, or one worker would be left alone with it at the end.
FIRST = (WHOLE_STACKS, SPLIT, ("tests/models/test_real_mlflow.py",))
# What starts last, when no whole stack takes the other core: it watches the clock most.
LAST = ("tests/dataplane/", "tests/embedded/", "tests/field/", "tests/notifications/")
# The other workers yield to the one with the whole stacks, whose users wait for answers.
NICENESS = 5
# A dictionary keeps its order.
FILES_RUN = pytest.StashKey[dict[str, None]]()


def group_of(nodeid: str) -> str:
    """Return the name of the group of tests that one worker runs one after the other."""
    if nodeid.startswith(WHOLE_STACKS):
        return "whole stacks"
    return nodeid if nodeid.startswith(SPLIT) else nodeid.partition("::")[0]


class Sharing(LoadScopeScheduling):
    """Hands out the groups in the order of collection; xdist would begin with the most tests."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)

    @property
    def nodes(self) -> list[WorkerController]:
        """The workers by name: the first one gets the first group, the whole stacks."""
        return sorted(super().nodes, key=lambda node: str(node.gateway.id))


def make_scheduler(config: pytest.Config, log: Any) -> Sharing:
    config.option.loadscopereorder = False
    return Sharing(config, log)


def are_given() -> bool:
    """Whether a developer's own servers are used: there is one Redis, and no second worker."""
    return "DATABASE_URL" in os.environ and "REDIS_URL" in os.environ


def yield_to_the_first() -> None:
    """Let the first worker have a core where both want it."""
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        os.nice(NICENESS)


def workers_for(config: pytest.Config) -> int:
    """Return what `-n auto` means: 0 where workers cost more than they save, or hide what is
    printed.
    """
    are_files = all(argument.partition("::")[0].endswith(".py") for argument in config.args)
    return 0 if are_files or are_given() or config.option.capture == "no" else WORKERS


def put_in_order(items: list[pytest.Item]) -> None:
    """Bring each group together, the long ones first; otherwise keep the random order."""
    first: dict[str, int] = {}
    for position, item in enumerate(items):
        for place in (group_of(item.nodeid), directory_of(item.nodeid)):
            first.setdefault(place, position)
    items.sort(
        key=lambda item: (
            rank_of(item.nodeid),
            first[group_of(item.nodeid)],
            # Of the whole stacks, the second starts when the first has ended.
            first[directory_of(item.nodeid)],
        )
    )


def rank_of(nodeid: str) -> int:
    rank = next((i for i, starts in enumerate(FIRST) if nodeid.startswith(starts)), len(FIRST))
    return rank + nodeid.startswith(LAST)


def directory_of(nodeid: str) -> str:
    return nodeid.partition("::")[0].rpartition("/")[0] + "/"


def files_before(item: pytest.Item) -> tuple[str, str] | None:
    """Return a section for a failure's report: which files the worker had run, in their order.

    None in a run without workers.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    files = " ".join(item.config.stash.setdefault(FILES_RUN, {}))
    return (f"files that {worker} had run", files) if worker else None


def note_file(item: pytest.Item) -> None:
    item.config.stash.setdefault(FILES_RUN, {})[item.nodeid.partition("::")[0]] = None
