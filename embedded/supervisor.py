"""Starts parts when their dependencies are ready, restarts them, and stops them in reverse order.

Each part has one runner task that lives as long as the stack. A part's children share its session,
so that none outlives it; the kernel ends the parts of a killed supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from embedded.logs import Console, PartLog
from embedded.part import EX_TEMPFAIL, Part, StackError
from embedded.resource_usage import cpu_s_by_session
from embedded.stale_processes import ProcessRecord, living_of, now_ticks
from embedded.state import ROOT

PR_SET_PDEATHSIG = 1
READ_BYTES = 65_536
POLL_S = 0.2
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
# After a life of at least this time a part restarts with the first, short delay.
HEALTHY_AFTER_S = 60.0
# The number of deaths of an awaited part before its first readiness that fail the start.
FIRST_STARTS_MAX = 3
KILL_WAIT_S = 5.0
# Seconds between the progress messages of the start.
PROGRESS_EVERY_S = 5.0
START_LIMIT = "INTERLOCK_START_LIMIT_S"
# The time limit for each part to become ready, from the readiness of its dependencies; 0: no
# limit. Even a machine that is twenty times slower than usual stays within it.
START_LIMIT_S = 900.0

_libc = ctypes.CDLL(None, use_errno=True)


def backoff_s(failures: int) -> float:
    """Return the delay after `failures` (≥ 1) consecutive failures: doubling, up to a maximum."""
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16))


def _open_pipe() -> tuple[BinaryIO, int]:
    read_end, write_end = os.pipe()
    return os.fdopen(read_end, "rb", buffering=0), write_end


class Runner:
    """Starts one part and restarts it when it dies."""

    def __init__(
        self,
        part: Part,
        log: PartLog,
        console: Console,
        record: ProcessRecord,
        start_limit_s: float = START_LIMIT_S,
    ) -> None:
        self.part = part
        # Seconds from the readiness of its dependencies; 0: no limit.
        self.start_limit_s = start_limit_s
        # What the part waits for, for messages, until it is ready.
        self.waits_for = ""
        self.log = log
        self.console = console
        self.record = record
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.stopping = asyncio.Event()
        self.process: asyncio.subprocess.Process | None = None
        self.restarts = 0
        self._failures = 0
        # Sessions of earlier lives whose children may keep running, and the ticks of their
        # leader's death.
        self._survivors: list[tuple[int, int]] = []
        # Further parts that must be ready before this one can be ready.
        self._ready_after: Sequence[Runner] = ()

    async def run(self, needs: Sequence[Runner], ready_after: Sequence[Runner] = ()) -> None:
        """Run the part until `stop` is called. Raises StackError if the part cannot start."""
        self._ready_after = ready_after
        try:
            for need in needs:
                self.waits_for = _names_of(needs)
                await need.ready.wait()
            while not self.stopping.is_set():
                began = time.monotonic()
                code = await self._live()
                if self.stopping.is_set() or (self.part.once and code == 0):
                    return
                await self._recover(code, lived_s=time.monotonic() - began)
        finally:
            self.ended.set()

    async def stop(self) -> None:
        """Send the stop signal; kill the part if it does not end in time."""
        self.stopping.set()
        if self.process is not None:
            self._signal(self.part.stop_signal, group=self.part.stop_group)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.part.stop_within_s):
                    await self.ended.wait()
            if not self.ended.is_set():
                self.console.print_error(f"{self.part.name} did not stop in time: killed")
                self.kill()
        await self._end_survivors()

    async def _end_survivors(self) -> None:
        """End the children of earlier lives of the part."""
        deadline = time.monotonic() + self.part.stop_within_s
        number = self.part.stop_signal
        while living := [pid for s, at in self._survivors for pid in living_of(s, at)]:
            is_late = time.monotonic() > deadline
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if is_late else number)
            await asyncio.sleep(POLL_S)

    def kill(self) -> None:
        """End the part and all its children at once."""
        self.stopping.set()
        self._signal(signal.SIGKILL, group=True)
        for session, at in self._survivors:
            for pid in living_of(session, at):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    async def _live(self) -> int:
        """Run the process once, from its start to its end; return its exit code."""
        self.waits_for = "its files and directories"
        if self.part.prepare is not None:
            await asyncio.to_thread(self.part.prepare)
        if self.stopping.is_set():
            return 0
        self.log.expected_text, self.log.has_matched = self.part.ready_line, False
        began = time.monotonic()
        process, output = await self._spawn()
        self.process = process
        self.record.add(process.pid)
        reading = asyncio.create_task(self._read(output))
        readiness = asyncio.create_task(self._watch_readiness())
        try:
            code = await process.wait()
        finally:
            readiness.cancel()
            # The leader's children have no parent any more.
            if self.part.outlived and not self.stopping.is_set():
                self._survivors.append((process.pid, now_ticks()))
            else:
                self._signal(signal.SIGKILL, group=True)
            self.process = None
            self.record.discard(process.pid)
            await asyncio.wait([reading], timeout=POLL_S)
            reading.cancel()
            self.log.flush()
        if self.part.once and code == 0 and not self.stopping.is_set():
            self.console.print_line(f"{self.part.name} is done ({time.monotonic() - began:.1f} s)")
            self.ready.set()
        return code

    async def _spawn(self) -> tuple[asyncio.subprocess.Process, BinaryIO]:
        """Start the process; return it and the pipe of its output. Raises StackError."""
        # Not asyncio's pipe: with it, `wait` would return only after all children of the process
        # have closed it, and a killed server would never restart.
        output, write_end = _open_pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *self.part.argv,
                env=dict(self.part.env),
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=self._child_setup(),
            )
        except OSError as error:
            output.close()
            raise StackError(f"{self.part.name} cannot be started: {error}.") from error
        finally:
            os.close(write_end)
        return process, output

    def _child_setup(self) -> Callable[[], None]:
        supervisor = os.getpid()
        orphan_signal, niceness = int(self.part.orphan_signal), self.part.niceness

        def setup() -> None:
            _libc.prctl(PR_SET_PDEATHSIG, orphan_signal)
            # The supervisor may have died between the fork and the line above.
            if os.getppid() != supervisor:
                os._exit(1)
            if niceness:
                os.nice(niceness)

        return setup

    async def _read(self, output: BinaryIO) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), output
        )
        try:
            while data := await reader.read(READ_BYTES):
                self.log.feed(data)
        finally:
            transport.close()

    async def _watch_readiness(self) -> None:
        """Set `ready` when the part is ready; kill the part if it exceeds the start limit.

        The limit counts from the readiness of all parts that it depends on.
        """
        began = clock = time.monotonic()
        while missing := await self._missing():
            behind = [need for need in self._ready_after if not need.ready.is_set()]
            self.waits_for = _names_of(behind) if behind else missing
            clock = time.monotonic() if behind else clock
            if 0 < self.start_limit_s < time.monotonic() - clock:
                self._kill_late_part(missing)
                return
            await asyncio.sleep(POLL_S)
        if not self.stopping.is_set():
            took_s = time.monotonic() - began
            self.console.print_line(f"{self.part.name} is ready ({took_s:.1f} s)")
            self.ready.set()

    def _kill_late_part(self, missing: str) -> None:
        limit_s = self.start_limit_s
        self.console.print_error(
            f"{self.part.name} is not ready after {limit_s:g} s (missing: {missing}; "
            f"{self.cpu_text()}) and is killed. If the machine is only slow, set "
            f"{START_LIMIT}={2 * limit_s:g}, or 0 for no limit; otherwise see {self.log.path}"
        )
        self._signal(signal.SIGKILL, group=True)

    async def _missing(self) -> str:
        """Return what is missing until the part is ready, or "" if it is ready."""
        if self.part.once:
            return "its end"
        if self.part.ready_line:
            return "" if self.log.has_matched else f"the line {self.part.ready_line.strip()!r}"
        return "" if self.part.ready is None else await self.part.ready()

    def cpu_text(self) -> str:
        """Return the part's CPU time, which shows whether it makes progress."""
        if self.process is None:
            return "not running"
        return f"{cpu_s_by_session()[self.process.pid]:.1f} s of CPU"

    async def _recover(self, code: int, lived_s: float) -> None:
        """Wait before the next start. Raises StackError if another start would not help."""
        is_new = not self.ready.is_set()
        # A part that was never ready fails, however long each of its lives is.
        is_well = lived_s > HEALTHY_AFTER_S and not is_new
        self._failures = 1 if is_well else self._failures + 1
        cause = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        is_refused = self.part.once and code > 0 and code != EX_TEMPFAIL
        is_hopeless = is_new and (self.part.awaited or self.part.once)
        if is_refused or (is_hopeless and self._failures >= FIRST_STARTS_MAX):
            raise StackError(
                f"{self.part.name} ended {cause}. Last lines of {self.log.path}:\n"
                + "\n".join(f"    {line}" for line in self.log.tail)
            )
        delay_s = backoff_s(self._failures)
        self.console.print_error(f"{self.part.name} ended {cause}; restarting in {delay_s:.1f} s")
        self.waits_for = f"its next start, in {delay_s:.1f} s"
        self.restarts += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self.stopping.wait()

    def _signal(self, number: signal.Signals, *, group: bool) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            (os.killpg if group else os.kill)(self.process.pid, number)


def _names_of(runners: Sequence[Runner]) -> str:
    """Return the names of the parts that are not ready yet."""
    return ", ".join(runner.part.name for runner in runners if not runner.ready.is_set())


class Supervisor:
    """Runs all parts of a stack; `parts` is in order of start, dependencies first."""

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        logs: Path,
        console: Console,
        record: ProcessRecord,
        start_limit_s: float = START_LIMIT_S,
    ) -> None:
        self.console = console
        self.runners = {
            part.name: Runner(
                part, PartLog(part.name, logs, console), console, record, start_limit_s
            )
            for part in parts
        }
        self._tasks: dict[str, asyncio.Task[None]] = {}
        console.register(list(self.runners))

    def _runners_of(self, names: Sequence[str]) -> list[Runner]:
        return [self.runners[name] for name in names if name in self.runners]

    async def start(self) -> None:
        """Start all parts; return when all awaited parts are ready. Raises StackError."""
        for name, runner in self.runners.items():
            needs = self._runners_of(runner.part.needs)
            ready_after = self._runners_of(runner.part.ready_after)
            self._tasks[name] = asyncio.create_task(runner.run(needs, ready_after), name=name)
        everything = asyncio.create_task(self._all_ready())
        broken = asyncio.create_task(self.broken())
        progress = asyncio.create_task(self._print_progress())
        try:
            await asyncio.wait([everything, broken], return_when=asyncio.FIRST_COMPLETED)
            if broken.done():
                broken.result()
        finally:
            for task in (broken, everything, progress):
                task.cancel()

    async def _print_progress(self) -> None:
        """Print every PROGRESS_EVERY_S seconds the parts that are not ready, with reasons."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            used = cpu_s_by_session()
            late = []
            for name, runner in self.runners.items():
                if not runner.part.awaited or runner.ready.is_set():
                    continue
                process = runner.process
                cpu = f", {used[process.pid]:.1f} s of CPU" if process else ""
                late.append(f"{name} (for {runner.waits_for}{cpu})")
            waited_s = time.monotonic() - began
            self.console.print_line(f"after {waited_s:.0f} s waiting for: {'; '.join(late)}")

    async def _all_ready(self) -> None:
        for runner in self.runners.values():
            if runner.part.awaited:
                await runner.ready.wait()

    async def broken(self) -> None:
        """Wait until a part fails, and raise its StackError; never return."""
        pending: set[asyncio.Task[None]] = set(self._tasks.values())
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled():
                    task.result()
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """Stop all parts, each one after the parts that depend on it."""
        await asyncio.gather(*(self._stop(runner) for runner in self.runners.values()))
        for runner in self.runners.values():
            runner.log.close()

    async def _stop(self, runner: Runner) -> None:
        runner.stopping.set()
        for other in self.runners.values():
            if runner.part.name in (*other.part.needs, *other.part.reports_to):
                await other.ended.wait()
        task = self._tasks.get(runner.part.name)
        if task is None:
            return
        if runner.process is None:
            task.cancel()
        await runner.stop()
        with contextlib.suppress(asyncio.CancelledError, StackError):
            await asyncio.wait_for(task, KILL_WAIT_S)
        runner.ended.set()

    def kill(self) -> None:
        """Kill all parts at once, in any order."""
        for runner in self.runners.values():
            runner.kill()
