"""Starts parts when what they need is ready, restarts them when they die, stops them in reverse.

Each part has one runner task that lives as long as the stack. A part's children share its session,
so nothing outlives it; the kernel ends parts whose supervisor was killed.
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
# A part that lived this long starts again with the first, short delay.
HEALTHY_AFTER_S = 60.0
# How often an awaited part may die before it was ever ready.
FIRST_STARTS_MAX = 3
KILL_WAIT_S = 5.0
# How often the start says what it waits for.
NARRATE_S = 5.0
START_LIMIT = "INTERLOCK_START_LIMIT_S"
# For each part, from when all that it needs is ready; 0: none. A machine that is twenty times as
# slow as it should be stays within it.
START_LIMIT_S = 900.0

_libc = ctypes.CDLL(None, use_errno=True)


def backoff_s(failures: int) -> float:
    """Seconds to wait after that many failures in a row (1 or more): doubling, up to a bound."""
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16))


def _open_pipe() -> tuple[BinaryIO, int]:
    read_end, write_end = os.pipe()
    return os.fdopen(read_end, "rb", buffering=0), write_end


class Runner:
    """Keeps one part running."""

    def __init__(
        self,
        part: Part,
        log: PartLog,
        console: Console,
        record: ProcessRecord,
        start_limit_s: float = START_LIMIT_S,
    ) -> None:
        self.part = part
        # Seconds from when its dependencies are ready; 0: it is waited for without end.
        self.start_limit_s = start_limit_s
        # What it waits for, in words, until it is ready.
        self.waits_for = ""
        self.log = log
        self.console = console
        self.record = record
        self.ready = asyncio.Event()
        self.gone = asyncio.Event()
        self.stopping = asyncio.Event()
        self.process: asyncio.subprocess.Process | None = None
        self.restarts = 0
        self._failures = 0
        # The sessions of earlier lives that may serve on, and when their leader was seen dead.
        self._survivors: list[tuple[int, int]] = []
        # The parts that this one's readiness depends on beside its needs.
        self._ready_after: Sequence[Runner] = ()

    async def run(self, needs: Sequence[Runner], ready_after: Sequence[Runner] = ()) -> None:
        """Live until told to stop. Raises StackError if the part cannot be started at all."""
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
            self.gone.set()

    async def stop(self) -> None:
        """Ask the part to end, then insist."""
        self.stopping.set()
        if self.process is not None:
            self._signal(self.part.stop_signal, group=self.part.stop_group)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.part.stop_within_s):
                    await self.gone.wait()
            if not self.gone.is_set():
                self.console.complain(f"{self.part.name} did not stop in time: killed")
                self.kill()
        await self._end_survivors()

    async def _end_survivors(self) -> None:
        """End what earlier lives of the part left to serve on."""
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
        """One life of the process, from its start to its exit code."""
        self.waits_for = "its files and directories"
        if self.part.prepare is not None:
            await asyncio.to_thread(self.part.prepare)
        if self.stopping.is_set():
            return 0
        self.log.watched_for, self.log.seen = self.part.ready_line, False
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
            # What the leader left in its group has no parent to care for it.
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
            self.console.say(f"{self.part.name} is done ({time.monotonic() - began:.1f} s)")
            self.ready.set()
        return code

    async def _spawn(self) -> tuple[asyncio.subprocess.Process, BinaryIO]:
        """Start the process; returns it and where to read what it says."""
        # The pipe is ours: with asyncio's own, `wait` would return only when every child that the
        # process left behind had closed it, and a killed server would never be started again.
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
        """Set `ready` when the part is; kill it when that takes longer than the limit.

        The clock of the limit starts when all that the part depends on is ready.
        """
        began = clock = time.monotonic()
        while missing := await self._missing():
            behind = [need for need in self._ready_after if not need.ready.is_set()]
            self.waits_for = _names_of(behind) if behind else missing
            clock = time.monotonic() if behind else clock
            if 0 < self.start_limit_s < time.monotonic() - clock:
                self._give_up(missing)
                return
            await asyncio.sleep(POLL_S)
        if not self.stopping.is_set():
            took_s = time.monotonic() - began
            self.console.say(f"{self.part.name} is ready ({took_s:.1f} s)")
            self.ready.set()

    def _give_up(self, missing: str) -> None:
        limit_s = self.start_limit_s
        self.console.complain(
            f"{self.part.name} lives and is not ready after {limit_s:g} s (it lacks {missing}; "
            f"{self.cpu_text()}), and is killed. On a machine that is only slow set "
            f"{START_LIMIT}={2 * limit_s:g}, or 0 for no limit; otherwise read {self.log.path}"
        )
        self._signal(signal.SIGKILL, group=True)

    async def _missing(self) -> str:
        """Return what the part lacks to be ready, in words; nothing when it is ready."""
        if self.part.once:
            return "its end"
        if self.part.ready_line:
            return "" if self.log.seen else f"the line {self.part.ready_line.strip()!r}"
        return "" if self.part.ready is None else await self.part.ready()

    def cpu_text(self) -> str:
        """Return how much the part has worked: who waits wants to know whether it does anything."""
        if self.process is None:
            return "not running"
        return f"{cpu_s_by_session()[self.process.pid]:.1f} s of CPU"

    async def _recover(self, code: int, lived_s: float) -> None:
        """Wait before the next start. Raises StackError when another start would not help."""
        is_new = not self.ready.is_set()
        # One that is never ready fails, however long each of its lives is.
        is_well = lived_s > HEALTHY_AFTER_S and not is_new
        self._failures = 1 if is_well else self._failures + 1
        how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        is_refused = self.part.once and code > 0 and code != EX_TEMPFAIL
        hopeless = is_new and (self.part.awaited or self.part.once)
        if is_refused or (hopeless and self._failures >= FIRST_STARTS_MAX):
            raise StackError(
                f"{self.part.name} ended {how}. Its last lines (all in {self.log.path}):\n"
                + "\n".join(f"    {line}" for line in self.log.tail)
            )
        delay_s = backoff_s(self._failures)
        self.console.complain(f"{self.part.name} ended {how}; starting it again in {delay_s:.1f} s")
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
    """Return the names of those that are not ready yet."""
    return ", ".join(runner.part.name for runner in runners if not runner.ready.is_set())


class Supervisor:
    """All parts of a stack; `parts` is in order of start, needs before the needing."""

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
        """Start everything; returns when all awaited parts are ready. Raises StackError."""
        for name, runner in self.runners.items():
            needs = self._runners_of(runner.part.needs)
            ready_after = self._runners_of(runner.part.ready_after)
            self._tasks[name] = asyncio.create_task(runner.run(needs, ready_after), name=name)
        everything = asyncio.create_task(self._all_ready())
        broken = asyncio.create_task(self.broken())
        narration = asyncio.create_task(self._narrate())
        try:
            await asyncio.wait([everything, broken], return_when=asyncio.FIRST_COMPLETED)
            if broken.done():
                broken.result()
        finally:
            for task in (broken, everything, narration):
                task.cancel()

    async def _narrate(self) -> None:
        """Say every few seconds which parts are not ready, and what each of them waits for."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(NARRATE_S)
            used = cpu_s_by_session()
            late = []
            for name, runner in self.runners.items():
                if not runner.part.awaited or runner.ready.is_set():
                    continue
                process = runner.process
                worked = f", {used[process.pid]:.1f} s of CPU" if process else ""
                late.append(f"{name} (for {runner.waits_for}{worked})")
            waited_s = time.monotonic() - began
            self.console.say(f"after {waited_s:.0f} s waiting for: {'; '.join(late)}")

    async def _all_ready(self) -> None:
        for runner in self.runners.values():
            if runner.part.awaited:
                await runner.ready.wait()

    async def broken(self) -> None:
        """Return only by raising the StackError of a part that cannot go on."""
        pending: set[asyncio.Task[None]] = set(self._tasks.values())
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled():
                    task.result()
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """Stop everything, each part after those that need it."""
        await asyncio.gather(*(self._stop(runner) for runner in self.runners.values()))
        for runner in self.runners.values():
            runner.log.close()

    async def _stop(self, runner: Runner) -> None:
        runner.stopping.set()
        for other in self.runners.values():
            if runner.part.name in (*other.part.needs, *other.part.reports_to):
                await other.gone.wait()
        task = self._tasks.get(runner.part.name)
        if task is None:
            return
        if runner.process is None:
            task.cancel()
        await runner.stop()
        with contextlib.suppress(asyncio.CancelledError, StackError):
            await asyncio.wait_for(task, KILL_WAIT_S)
        runner.gone.set()

    def kill(self) -> None:
        """End everything at once, in no order."""
        for runner in self.runners.values():
            runner.kill()
