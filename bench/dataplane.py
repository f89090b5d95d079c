"""Through the data plane against Triton's own HTTP endpoint: the same model, machine and minute.

One-row JSON requests in a closed loop. The targets take turns, round after round, because the
machine drifts: each ratio is taken within one round, and the median over the rounds is printed.
Everything of the data plane is on: telemetry to a real Redis, and a canary where it says so.
`proxy` is the data plane's own CPU, `all` adds Triton and its model process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import msgspec

from bench import flowers
from contract.routing import (
    Batching,
    CanarySplit,
    Cluster,
    ModelRoute,
    RoutingTable,
    VersionRoute,
    encode,
)
from embedded.ports import is_free
from embedded.stack import running

BODY = b'{"inputs":[{"name":"features","datatype":"FP32","shape":[1,4],"data":[5.1,3.5,1.4,0.2]}]}'
DIRECT = "triton"
DIRECT_BATCHED = "triton, its batcher on"
OURS = "data plane"
OURS_CANARY = "data plane, canary at 10 %"
PERCENTILES = ("p50_ms", "p95_ms", "p99_ms")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Target:
    name: str
    port: int
    path: str


@dataclass(frozen=True)
class Sample:
    """One run: requests a second, milliseconds, errors, CPU microseconds a request."""

    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    errors: float
    proxy_us: float
    all_us: float


def main() -> None:
    """Run all rounds and print a table for each number of connections."""
    parser = argparse.ArgumentParser(prog="bench dataplane")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 64, 256])
    options = parser.parse_args(sys.argv[2:])
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory)
        for name, extra in (("flowers.1", ""), ("flowers.2", ""), ("batched", BATCHER)):
            flowers.write(state / "triton" / "repository", name, extra)
        with running(state, {"redis", "triton"}) as stack:
            triton_port = stack.ports["triton_http"]
            with data_plane(state, triton_port, stack.redis_url) as (process, port):
                targets = [
                    Target(DIRECT, triton_port, "/v2/models/flowers.1/versions/1/infer"),
                    Target(DIRECT_BATCHED, triton_port, "/v2/models/batched/versions/1/infer"),
                    Target(OURS, port, "/v2/models/plain/infer"),
                    Target(OURS_CANARY, port, "/v2/models/flowers/infer"),
                ]
                for target in targets:
                    check(target)
                for connections in options.connections:
                    samples = measure(targets, connections, options, process.pid)
                    print_table(connections, samples)


BATCHER = "dynamic_batching { }"


def table(triton_port: int) -> bytes:
    """Return a table with a model whose canary gets 10 %, and the same model without a split."""
    versions = {
        n: VersionRoute(cluster="main", triton_model=f"flowers.{n}", triton_version="1")
        for n in ("1", "2")
    }
    model = ModelRoute(
        signature=flowers.SIGNATURE,
        stable="1",
        versions=versions,
        split=CanarySplit(id="r", salt="s", version="2", weight_bp=1_000),
        batching=Batching(max_batch_size=64),
    )
    models = {"flowers": model, "plain": msgspec.structs.replace(model, split=None)}
    cluster = Cluster(endpoints=(f"127.0.0.1:{triton_port}",))
    return encode(RoutingTable(generation=1, models=models, clusters={"main": cluster}))


@contextmanager
def data_plane(
    state: Path, triton_port: int, redis_url: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run an instance that starts from a stored table: the control plane is not needed."""
    folder = state / "dataplane"
    folder.mkdir()
    (folder / "routing-table.json").write_bytes(table(triton_port))
    port = next(port for port in range(20_000, 30_000) if is_free(port))
    settings = {
        "INTERLOCK_BIND": f"127.0.0.1:{port}",
        "INTERLOCK_CONTROL_URL": "http://127.0.0.1:9",
        "INTERLOCK_INSTANCE_TOKEN": "none",
        "INTERLOCK_INSTANCE_NAME": "bench",
        "INTERLOCK_STATE_DIR": str(folder),
        "REDIS_URL": redis_url,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "dataplane"],
        env={**os.environ, **settings},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_ready(port)
        yield process, port
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(port: int) -> None:
    for _ in range(200):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise SystemExit("the data plane did not become ready")


def check(target: Target) -> None:
    """Make sure that the target answers rightly before it is timed."""
    answer = httpx.post(f"http://127.0.0.1:{target.port}{target.path}", content=BODY)
    answer.raise_for_status()
    names = [output["name"] for output in answer.json()["outputs"]]
    assert names == ["probabilities", "label"], answer.text


def measure(
    targets: list[Target], connections: int, options: argparse.Namespace, proxy: int
) -> dict[str, list[Sample]]:
    """Return the samples of each target; the targets take turns."""
    samples: dict[str, list[Sample]] = {target.name: [] for target in targets}
    for _ in range(options.rounds):
        for target in targets:
            samples[target.name].append(sample(target, connections, options.seconds, proxy))
    return samples


def sample(target: Target, connections: int, seconds: float, proxy: int) -> Sample:
    """Run the load generator once and see what CPU it cost."""
    head = f"POST {target.path} HTTP/1.1\r\nhost: x\r\n"
    request = f"{head}content-length: {len(BODY)}\r\n\r\n".encode() + BODY
    servers = servers_of(proxy)
    before = {pid: cpu_s(pid) for pid in servers}
    command = [sys.executable, "-m", "bench.load", str(target.port), str(connections), str(seconds)]
    done = subprocess.run(command, input=request, capture_output=True, check=True)
    result = json.loads(done.stdout)
    used = {pid: cpu_s(pid) - before[pid] for pid in servers}
    answered = result.pop("answered")
    return Sample(
        **result,
        proxy_us=used[proxy] / answered * 1e6,
        all_us=sum(used.values()) / answered * 1e6,
    )


def servers_of(proxy: int) -> list[int]:
    """Return the data plane, Triton and its model processes, by what they run."""
    found = [proxy]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                program = (entry / "cmdline").read_bytes().split(b"\0", 1)[0]
            except OSError:
                continue
            if program.endswith((b"/tritonserver", b"/triton_python_backend_stub")):
                found.append(int(entry.name))
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process used so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def print_table(connections: int, samples: dict[str, list[Sample]]) -> None:
    """Print medians over the rounds, and ratios taken round by round."""
    plural = "" if connections == 1 else "s"
    print(f"\n{connections} connection{plural}, median of {len(samples[OURS])} rounds\n")
    print(f"| target | requests/s | × {DIRECT} | × {DIRECT_BATCHED} | p50 ms | p95 ms | p99 ms "
          "| proxy µs | all µs |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, rows in samples.items():
        cells = [
            name,
            f"{median(row.per_second for row in rows):,.0f}",
            f"{ratio(rows, samples[DIRECT]):.2f}",
            f"{ratio(rows, samples[DIRECT_BATCHED]):.2f}",
            *(f"{median(getattr(row, field) for row in rows):.2f}" for field in PERCENTILES),
            f"{median(row.proxy_us for row in rows):.0f}" if name.startswith(OURS) else "",
            f"{median(row.all_us for row in rows):.0f}",
        ]
        print(f"| {' | '.join(cells)} |")
        errors = sum(row.errors for row in rows)
        if errors:
            print(f"{errors:.0f} errors at {name}")
    sys.stdout.flush()


def ratio(rows: list[Sample], base: list[Sample]) -> float:
    """Return the median over the rounds of how many times as many requests were answered."""
    pairs = zip(rows, base, strict=True)
    return median(row.per_second / other.per_second for row, other in pairs)


if __name__ == "__main__":
    main()
