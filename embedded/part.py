"""What the supervisor is told about a process: how to start it, when it is ready, how to end it."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field


class StackError(Exception):
    """The stack cannot start or go on; the text says why and what to do about it."""


# The exit code of a command whose reason may be gone at its next run, as in sysexits.h.
EX_TEMPFAIL = 75


class MissingComponent(StackError):
    """Something that a part needs is not on this machine."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what} is missing.\n    {remedy}")


@dataclass(frozen=True)
class Part:
    """One supervised process; `needs` names the parts that must have been ready before it starts.

    `once` is a command that must end with exit code 0, after which it counts as ready; one that
    ends with EX_TEMPFAIL is run again.
    `awaited` parts hold up the end of start-up, and end it if they cannot start; the others
    come up behind its back and are tried for ever.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    # Parts that it starts without and is not ready before: its time to start counts from theirs.
    ready_after: tuple[str, ...] = ()
    # Parts that it tells of its end: they stop after it, but it starts without them.
    reports_to: tuple[str, ...] = ()
    once: bool = False
    awaited: bool = True
    # Runs in a thread before each start: directories, stale files.
    prepare: Callable[[], None] | None = None
    # Polled until it answers nothing; until then it says what is missing. With neither this nor a
    # line: ready as soon as it runs.
    ready: Callable[[], Awaitable[str]] | None = None
    # Ready once it has written a line that holds this.
    ready_line: str = ""
    stop_signal: signal.Signals = signal.SIGTERM
    # Whether the stop signal goes to the whole process group or only to its leader.
    stop_group: bool = False
    stop_within_s: float = 10.0
    # What its leader leaves behind when it dies serves on, until the next one has taken over.
    outlived: bool = False
    # What the kernel sends the process when the supervisor itself is killed.
    orphan_signal: signal.Signals = signal.SIGTERM
    niceness: int = 0
