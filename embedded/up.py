"""Runs a stack in this process: locks the directory, starts the parts, serves, stops them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from embedded.logs import Console
from embedded.part import StackError
from embedded.ports import choose_ports, requested_ports
from embedded.stack import Stack, declare_parts, describe
from embedded.stale_processes import ProcessRecord, end_leftovers
from embedded.state import DEFAULT_STATE_DIR, StateDir
from embedded.supervisor import START_LIMIT, START_LIMIT_S, Supervisor

PARENT_POLL_S = 1.0


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    state_dir: Path = DEFAULT_STATE_DIR
    only: Collection[str] | None = None
    quiet: bool = False
    free_ports: bool = False
    ports: Mapping[str, int | None] = field(default_factory=dict)
    # The time limit of each part from the readiness of its dependencies, in seconds; 0: no limit.
    start_limit_s: float = START_LIMIT_S
    # Stop when the process with this pid ends: the stack of a test run ends with the run.
    stop_with: int | None = None


def read_start_limit(environ: Mapping[str, str]) -> float:
    """Return the time limit of a part's start in seconds. Raises StackError."""
    text = environ.get(START_LIMIT, "").strip()
    if not text:
        return START_LIMIT_S
    if not text.replace(".", "", 1).isdecimal():
        raise StackError(f"{START_LIMIT}={text!r} is not a valid number of seconds (0: no limit).")
    return float(text)


def run_stack(options: Options, environ: Mapping[str, str], console: Console) -> int:
    """Run a stack until a signal stops it; return the exit code. Raises StackError."""
    began = time.monotonic()
    state = StateDir(options.state_dir)
    state.open()
    with state.locked():
        state.ready_file.unlink(missing_ok=True)
        record = ProcessRecord(state.process_file)
        if ended := end_leftovers(record):
            console.print_line(f"ended {ended} processes of an earlier run")
        requested = requested_ports(options.ports, environ)
        ports = choose_ports(state.ports_file, requested, prefer_usual=not options.free_ports)
        secrets = state.secrets(environ)
        stack = describe(state, ports, secrets, environ)
        parts = declare_parts(stack, secrets, environ, options.only)
        stack = replace(stack, parts=tuple(part.name for part in parts))

        def on_ready() -> None:
            stack.save(state)
            password = None if secrets.admin_password_shown else secrets.admin_password
            console.print_line(summary(stack, password, took_s=time.monotonic() - began))
            if "bootstrap" in stack.parts:
                state.remember_password_shown(secrets)

        supervisor = Supervisor(
            parts,
            logs=state.logs,
            console=console,
            record=record,
            start_limit_s=options.start_limit_s,
        )
        try:
            return asyncio.run(_serve(supervisor, on_ready, options.stop_with))
        finally:
            state.ready_file.unlink(missing_ok=True)


async def _serve(
    supervisor: Supervisor, on_ready: Callable[[], None], stop_with: int | None
) -> int:
    stop = asyncio.Event()
    with _signals(stop, supervisor):
        watching = asyncio.create_task(_stop_with(stop_with, stop))
        work = asyncio.create_task(_start_and_watch(supervisor, on_ready))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            return 0
        except StackError as error:
            supervisor.console.print_error(str(error))
            return 1
        finally:
            for task in (work, stopped, watching):
                task.cancel()
            supervisor.console.print_line("stopping (repeat the signal to kill everything)")
            began = time.monotonic()
            await supervisor.stop()
            supervisor.console.print_line(f"stopped in {time.monotonic() - began:.1f} s")


async def _start_and_watch(supervisor: Supervisor, on_ready: Callable[[], None]) -> None:
    await supervisor.start()
    on_ready()
    await supervisor.broken()


async def _stop_with(pid: int | None, stop: asyncio.Event) -> None:
    while pid is not None:
        await asyncio.sleep(PARENT_POLL_S)
        if os.getppid() != pid:
            stop.set()
            return


@contextlib.contextmanager
def _signals(stop: asyncio.Event, supervisor: Supervisor) -> Iterator[None]:
    """Handle signals: the first stops all parts in order, the second kills them at once."""

    def handle() -> None:
        if stop.is_set():
            supervisor.console.print_error("killing everything")
            supervisor.kill()
        stop.set()

    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def summary(stack: Stack, password: str | None, took_s: float) -> str:
    """Return the text that ends the start; `password` is None if it must not be shown."""
    places = [
        ("web", "Web UI", stack.urls.web),
        ("dataplane", "Predict", f"{stack.urls.dataplane}/v2/models/<model>/infer"),
        ("dataplane", "gRPC", stack.urls.dataplane_grpc),
        (
            "mlflow",
            "MLflow",
            f"{stack.urls.mlflow}  (starts in about 30 s; user "
            f"{stack.env['MLFLOW_TRACKING_USERNAME']}, password in secrets.json)",
        ),
        ("triton", "Triton", stack.urls.triton),
        ("postgres", "PostgreSQL", f"127.0.0.1:{stack.ports['postgres']}"),
        ("redis", "Redis", f"127.0.0.1:{stack.ports['redis']}"),
    ]
    lines = ["", f"Ready in {took_s:.1f} s. State and logs: {stack.state_dir}"]
    lines += [f"  {label:<11} {url}" for part, label, url in places if part in stack.parts]
    if "bootstrap" in stack.parts:
        shown = password or "(shown at the first start, or set by INTERLOCK_ADMIN_PASSWORD)"
        lines += [f"  User        {stack.admin_username}", f"  Password    {shown}"]
    return "\n".join([*lines, "Ctrl-C stops everything.", ""])
