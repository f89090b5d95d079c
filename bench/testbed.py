"""The setup of the data plane's benchmarks: a real Triton and Redis, our process, and peers.

All features of the data plane are on: an API key, a canary and an experiment on other models, and
telemetry and exposures to a real Redis.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench import flowers
from bench.load import Job
from contract.routing import (
    Batching,
    Cache,
    CanarySplit,
    Cluster,
    ExperimentSplit,
    ModelRoute,
    RoutingTable,
    Tenant,
    VariantRoute,
    VersionRoute,
    encode,
)
from embedded.ports import is_free

KEY = "benchmark-key"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
MODEL_SERVERS = (b"/tritonserver", b"/triton_python_backend_stub")
UNITS = 1_000


@dataclass(frozen=True)
class Target:
    """A server to send requests to; `processes` are its own, without those of Triton."""

    name: str
    port: int
    path: str
    processes: tuple[int, ...] = ()
    width: int = 4
    # The number of different rows, in turn.
    rows: int = 1
    # The header lines of each request.
    headers: str = f"content-type: application/json\r\nx-api-key: {KEY}\r\n"

    def requests(self) -> list[str]:
        """Return the requests to send in turn, each with its own unit."""
        bodies = [flowers.body(self.width, i / 1_000).decode() for i in range(self.rows)]
        count = max(UNITS, self.rows)
        return [
            f"POST {self.path} HTTP/1.1\r\nhost: x\r\nx-unit-id: u{i}\r\n{self.headers}"
            f"content-length: {len(bodies[i % self.rows])}\r\n\r\n{bodies[i % self.rows]}"
            for i in range(count)
        ]


@dataclass(frozen=True)
class Sample:
    """One run: requests per second, milliseconds, errors, CPU microseconds per request."""

    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    errors: float
    own_us: float
    all_us: float


def sample(target: Target, connections: int, seconds: float, rate: float | None = None) -> Sample:
    """Run the load generator once, and measure the CPU time of the servers."""
    job = Job(target.port, connections, seconds, target.requests(), rate)
    servers = {*target.processes, *_model_servers()}
    before = {pid: cpu_s(pid) for pid in servers}
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"], input=job.encode(), capture_output=True, check=True
    )
    result = json.loads(done.stdout)
    used = {pid: cpu_s(pid) - before[pid] for pid in servers}
    answered = result.pop("answered")
    own = sum(used[pid] for pid in target.processes)
    return Sample(**result, own_us=own / answered * 1e6, all_us=sum(used.values()) / answered * 1e6)


def check(target: Target) -> None:
    """Assert that the target returns the right outputs before it is measured."""
    headers = {"content-type": "application/json", "x-api-key": KEY}
    url = f"http://127.0.0.1:{target.port}{target.path}"
    response = httpx.post(url, content=flowers.body(target.width), headers=headers)
    response.raise_for_status()
    names = [output["name"] for output in response.json()["outputs"]]
    assert names == ["probabilities", "label"], response.text


def _model_servers() -> list[int]:
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                program = (entry / "cmdline").read_bytes().split(b"\0", 1)[0]
            except OSError:
                continue
            if program.endswith(MODEL_SERVERS):
                pids.append(int(entry.name))
    return pids


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def family(pid: int) -> tuple[int, ...]:
    """Return a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (pid, *(descendant for child in children for descendant in family(int(child))))


def machine() -> str:
    """Return the description of the machine for the head of a table."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}"


# --- tables -------------------------------------------------------------------------------------


def route(name: str, width: int = 4, **changes: object) -> ModelRoute:
    """Return a model with the Triton models `name.1` and `name.2`."""
    settings: dict[str, object] = {
        "signature": flowers.signature(width),
        "stable": "1",
        "versions": {
            n: VersionRoute(cluster="main", triton_model=f"{name}.{n}", triton_version="1")
            for n in ("1", "2")
        },
        "batching": Batching(max_batch_size=64),
    }
    return ModelRoute(**settings | changes)  # type: ignore[arg-type]


CANARY = CanarySplit(id="r", salt="s", version="2", weight_bp=1_000)
EXPERIMENT = ExperimentSplit(
    id="e",
    inclusion_salt="in",
    variant_salt="va",
    coverage_bp=10_000,
    variants=(
        VariantRoute(name="control", version="1", weight_bp=5_000),
        VariantRoute(name="treatment", version="2", weight_bp=5_000),
    ),
)


def models(others: int = 0) -> dict[str, ModelRoute]:
    """Return the models of the benchmarks, and `others` without requests."""
    plain = route("flowers")
    return {
        "plain": plain,
        "wide": route("wide", 768),
        "canary": route("flowers", split=CANARY),
        "experiment": route("flowers", split=EXPERIMENT),
        "cached": route("flowers", cache=Cache(ttl_s=600)),
        "shared": route("flowers", cache=Cache(ttl_s=600, shared=True)),
        **{f"other-{i}": plain for i in range(others)},
    }


def table(triton_port: int, others: int = 0, generation: int = 1) -> bytes:
    """Return a routing table with all features on."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    return encode(
        RoutingTable(
            generation=generation,
            models=models(others),
            clusters={"main": Cluster(endpoints=(f"127.0.0.1:{triton_port}",))},
            tenants={"bench": Tenant(keys=(digest,), requests_per_s=1e9)},
            key_required=True,
            id_secret="bench",
        )
    )


def write_models(repository: Path) -> None:
    """Write the models of the tables to Triton's repository, also with Triton's batcher on."""
    for name, width in (("flowers", 4), ("wide", 768)):
        for version in ("1", "2"):
            flowers.write(repository, f"{name}.{version}", width=width)
        flowers.write(repository, f"{name}.batched", "dynamic_batching { }", width=width)


# --- processes ----------------------------------------------------------------------------------


@dataclass
class Process:
    """A server under test."""

    popen: subprocess.Popen[bytes]
    port: int
    folder: Path = field(default_factory=Path)

    @property
    def pids(self) -> tuple[int, ...]:
        return family(self.popen.pid)


def free_port() -> int:
    return next(port for port in range(20_000, 30_000) if is_free(port))


@contextmanager
def running_process(
    command: list[str],
    port: int,
    path: str,
    environ: dict[str, str] | None = None,
    source: Path | None = None,
) -> Iterator[Process]:
    """Run a server until the block ends; it is up when a GET of `path` has a status below 500.

    `source` is the checkout whose code it runs; by default the current directory.
    """
    popen = subprocess.Popen(
        [sys.executable, *command],
        cwd=source,
        env={**os.environ, **(environ or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_up(popen, f"http://127.0.0.1:{port}{path}")
        yield Process(popen, port)
    finally:
        popen.send_signal(signal.SIGTERM)
        popen.wait()


@contextmanager
def data_plane(
    folder: Path,
    stored_table: bytes,
    redis_url: str,
    control_url: str = "http://127.0.0.1:9",
    source: Path | None = None,
    **settings: str,
) -> Iterator[Process]:
    """Run an instance that starts from a stored table, without a control plane.

    `source` is the checkout whose data plane it is; by default the current directory.
    """
    folder.mkdir(parents=True)
    (folder / "routing-table.json").write_bytes(stored_table)
    # A new instance sends nothing until its first report is accepted; there is no control plane
    # here.
    (folder / "home").write_text("bench")
    port = free_port()
    environ = {
        "INTERLOCK_BIND": f"127.0.0.1:{port}",
        "INTERLOCK_CONTROL_URL": control_url,
        "INTERLOCK_INSTANCE_TOKEN": "none",
        "INTERLOCK_INSTANCE_NAME": "bench",
        "INTERLOCK_STATE_DIR": str(folder),
        "REDIS_URL": redis_url,
        **settings,
    }
    command = ["-m", "dataplane"]
    with running_process(command, port, "/v2/health/ready", environ, source) as process:
        process.folder = folder
        yield process


def _wait_until_up(popen: subprocess.Popen[bytes], url: str) -> None:
    for _ in range(400):
        if popen.poll() is not None:
            raise SystemExit(f"{popen.args!r} ended with {popen.returncode}")
        try:
            if httpx.get(url).status_code < 500:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise SystemExit(f"{url} does not answer within 20 s")
