"""The parts of a stack in their order, and the description of a running stack.

Tests and tools start a stack with `running(directory, only={"postgres", "redis"})`; on a terminal
`python -m embedded up --only postgres,redis,triton,mlflow` starts only the real servers.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from embedded import interlock_parts, mlflow, postgres, valkey
from embedded.part import MissingComponent, Part, StackError
from embedded.stale_processes import read_process
from embedded.state import ROOT, Secrets, StateDir
from embedded.triton import Triton, selftest_part

PART_NAMES = (
    "postgres",
    "mlflow",
    "redis",
    "triton",
    "selftest",
    "dataplane",
    "migrate",
    "bootstrap",
    "web",
    "worker",
    "beat",
    "ingest",
)
# Without this, a thread pool per process would put dozens of threads on a few cores.
SINGLE_THREADED = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
NOT_INHERITED = ("PG", "INTERLOCK_", "MLFLOW_", "DJANGO_", "DATABASE_URL", "REDIS_URL", "CELERY_")
STOP_WITHIN_S = 180.0


@dataclass(frozen=True)
class Urls:
    """The addresses of the servers."""

    web: str
    dataplane: str
    dataplane_grpc: str
    mlflow: str
    triton: str
    triton_metrics: str
    database_url: str
    redis_url: str


@dataclass(frozen=True)
class Stack:
    """A stack that is ready; `env` is the whole environment of Interlock's own processes."""

    pid: int
    state_dir: str
    parts: tuple[str, ...]
    ports: dict[str, int]
    urls: Urls
    instance_token: str
    triton_token: str
    admin_username: str
    admin_password: str
    env: dict[str, str]

    @property
    def database_url(self) -> str:
        return self.urls.database_url

    @property
    def redis_url(self) -> str:
        return self.urls.redis_url

    def save(self, state: StateDir) -> None:
        state.write_private(state.ready_file, asdict(self))


def load_stack(state: StateDir) -> Stack | None:
    """Return the ready stack of the directory, or None."""
    try:
        stack = msgspec.json.decode(state.ready_file.read_bytes(), type=Stack)
    except (OSError, msgspec.MsgspecError):
        return None
    # A killed stack did not remove its file.
    return stack if read_process(stack.pid) else None


def base_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of servers, without variables that point to other installations."""
    inherited = {k: v for k, v in environ.items() if not k.startswith(NOT_INHERITED)}
    # Parts on one machine must not use a proxy.
    for name in ("NO_PROXY", "no_proxy"):
        inherited[name] = ",".join(filter(None, [inherited.get(name), "127.0.0.1,localhost"]))
    return {**inherited, **SINGLE_THREADED, **NO_TELEMETRY}


def describe(
    state: StateDir, ports: dict[str, int], secrets: Secrets, environ: Mapping[str, str]
) -> Stack:
    """Describe the stack of this directory before it runs."""
    base = base_environment(environ)
    # Interlock's settings that the stack does not set itself are the user's.
    base |= {name: value for name, value in environ.items() if name.startswith("INTERLOCK_")}
    database_url = postgres.database_url(ports["postgres"], secrets.postgres_password)
    env = interlock_parts.environment(base, state.path, ports, secrets, database_url)
    return Stack(
        pid=os.getpid(),
        state_dir=str(state.path),
        parts=(),
        ports=ports,
        urls=Urls(
            web=env["INTERLOCK_CONTROL_URL"],
            dataplane=env["INTERLOCK_DATAPLANE_URL"],
            dataplane_grpc=env["INTERLOCK_GRPC_BIND"],
            mlflow=env["MLFLOW_TRACKING_URI"],
            triton=env["INTERLOCK_TRITON_URLS"],
            triton_metrics=f"http://127.0.0.1:{ports['triton_metrics']}/metrics",
            database_url=database_url,
            redis_url=env["REDIS_URL"],
        ),
        instance_token=secrets.instance_token,
        triton_token=secrets.triton_token,
        admin_username=interlock_parts.ADMIN_USERNAME,
        admin_password=secrets.admin_password,
        env=env,
    )


def declare_parts(
    stack: Stack, secrets: Secrets, environ: Mapping[str, str], only: Collection[str] | None
) -> list[Part]:
    """Return the parts in order of start. Raises StackError that lists all missing components."""
    state, ports, base = Path(stack.state_dir), stack.ports, base_environment(environ)
    triton = Triton(state / "triton", ports, secrets.triton_token)
    store = postgres.database_url(ports["postgres"], secrets.postgres_password, "mlflow")
    makers = {
        "postgres": lambda: postgres.part(
            state / "postgres", ports["postgres"], secrets.postgres_password, base, environ
        ),
        "mlflow": lambda: mlflow.part(
            state / "mlflow-artifacts", ports["mlflow"], store, secrets.mlflow_password, base
        ),
        "redis": lambda: valkey.part(
            state / "redis", ports["redis"], secrets.redis_password, base, environ
        ),
        "triton": lambda: triton.part(base),
        "selftest": lambda: selftest_part(
            triton.repository, stack.urls.triton, secrets.triton_token, base
        ),
    }
    makers |= {p.name: lambda p=p: p for p in interlock_parts.parts(state, ports, stack.env)}  # type: ignore[misc]
    parts, missing = [], []
    for name in PART_NAMES:
        if only is None or name in only:
            try:
                parts.append(makers[name]())
            except MissingComponent as error:
                missing.append(error)
    if missing:
        raise StackError("\n".join(map(str, missing)))
    return parts


@contextlib.contextmanager
def running(
    state_dir: Path, only: Collection[str] | None = None, *, show_progress: bool = False
) -> Iterator[Stack]:
    """Run a stack (or only the parts in `only`) in another process while the block runs.

    It uses free ports, so that it does not conflict with other stacks. `show_progress` prints the
    progress of the start on the terminal, and uses the usual ports.

    Raises:
        StackError: a part cannot start, or exceeds its start limit; with the last lines of output.
    """
    command = [sys.executable, "-m", "embedded", "up", "--quiet", "--state-dir", str(state_dir)]
    if only is not None:
        command += ["--only", ",".join(sorted(only))]
    if not show_progress:
        command += ["--free-ports"]
    state = StateDir(state_dir)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [*command, "--stop-with", str(os.getpid())],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=None if show_progress else output,
            start_new_session=True,
        )
        try:
            if (stack := _wait_until_ready(process, state)) is None:
                output.seek(0)
                raise StackError(f"The stack did not start.\n{output.read()[-8_000:]}")
            yield stack
        finally:
            _end(process)


def _wait_until_ready(process: subprocess.Popen[bytes], state: StateDir) -> Stack | None:
    while process.poll() is None:
        stack = load_stack(state)
        if stack is not None and stack.pid == process.pid:
            return stack
        time.sleep(0.05)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
