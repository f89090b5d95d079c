"""The description of a supervised process: how to start it, when it is ready, how to stop it."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field


class StackError(Exception):
    """The stack cannot start or continue; the message has the reason and a remedy."""


# The exit code of a command with a temporary failure, as in sysexits.h: it is run again.
EX_TEMPFAIL = 75


class MissingComponent(StackError):
    """A part needs a component that is not installed on this machine."""

    def __init__(self, component: str, remedy: str) -> None:
        super().__init__(f"{component} is missing.\n    {remedy}")


@dataclass(frozen=True)
class Part:
    """One supervised process; the parts in `needs` must have been ready before it starts.

    `once` marks a command: it is ready after exit code 0 and is run again after EX_TEMPFAIL.
    The start of the stack waits for `awaited` parts and fails if one of them cannot start. The
    others start in the background and are restarted for ever.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    # Parts that must be ready before this one can be ready, though it starts without them. Its
    # start limit counts from their readiness.
    ready_after: tuple[str, ...] = ()
    # Parts that stop after this one, as it reports its end to them; it starts without them.
    reports_to: tuple[str, ...] = ()
    once: bool = False
    awaited: bool = True
    # Runs in a thread before each start: directories, stale files.
    prepare: Callable[[], None] | None = None
    # Polled until it returns ""; before, it returns what is missing. Without `ready` and
    # `ready_line` the part is ready as soon as it runs.
    ready: Callable[[], Awaitable[str]] | None = None
    # The part is ready once it has written a line that contains this text.
    ready_line: str = ""
    stop_signal: signal.Signals = signal.SIGTERM
    # Whether the stop signal goes to the whole process group or only to its leader.
    stop_group: bool = False
    stop_within_s: float = 10.0
    # Whether children of a dead leader keep running until the next leader has taken over.
    outlived: bool = False
    # The signal that the kernel sends to the process when the supervisor is killed.
    orphan_signal: signal.Signals = signal.SIGTERM
    niceness: int = 0
