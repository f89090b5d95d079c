"""Compares the data plane with Triton's own HTTP endpoint, on the same model and machine.

The load is one-row JSON requests to a real Triton, with all features of the data plane on. The
targets take turns in each round, since the machine drifts: ratios are computed within a round, and
the median over the rounds is printed. After the closed loop follow constant rates with Poisson
arrivals, where latency counts from the time at which a request was due.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from bench.testbed import (
    Sample,
    Target,
    check,
    data_plane,
    free_port,
    machine,
    running_process,
    sample,
    table,
    write_models,
)
from embedded.stack import Stack, running

DIRECT = "triton"
BATCHED = "triton, its batcher on"
OURS = "data plane"
CANARY = "data plane, canary at 10 %"
EXPERIMENT = "data plane, experiment"
RELAY = "triton behind a bare relay"
PEER = "FastAPI, batching queue"
WIDE = ", 768 features"
PERCENTILES = ("p50_ms", "p95_ms", "p99_ms")
# Requests a second of the constant-rate runs, with 4 and with 768 features.
RATES = {"": 10_000, WIDE: 8_000}
RATE_CONNECTIONS = 256

Samples = dict[str, list[Sample]]


def main() -> None:
    """Run all rounds and print a table for each number of connections and each rate."""
    parser = argparse.ArgumentParser(prog="bench dataplane")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 64, 256])
    options = parser.parse_args(sys.argv[2:])
    print(f"{machine()}; load generator on the same machine; medians of {options.rounds} rounds")
    with stand() as targets:
        for target in targets.values():
            check(target)
        for connections in options.connections:
            names = [DIRECT, BATCHED, RELAY, OURS, CANARY, EXPERIMENT, PEER]
            selected = [targets[name] for name in names]
            samples = measure(selected, connections, options)
            print_closed(f"{connections} connections, 4 features", samples)
        selected = [targets[name + WIDE] for name in (DIRECT, BATCHED, OURS)]
        print_closed("64 connections, 768 features", measure(selected, 64, options), WIDE)
        for suffix, rate in RATES.items():
            selected = [targets[name + suffix] for name in (DIRECT, BATCHED, OURS)]
            samples = measure(selected, RATE_CONNECTIONS, options, rate)
            print_constant(f"{rate:,} requests/s{suffix or ', 4 features'}, Poisson", samples)


@contextmanager
def stand() -> Iterator[dict[str, Target]]:
    """Start Triton, Redis, the data plane and the peer; yield the targets by name."""
    with ExitStack() as exits:
        state = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        write_models(state / "triton" / "repository")
        stack: Stack = exits.enter_context(running(state, {"redis", "triton"}))
        triton = stack.ports["triton_http"]
        ours = exits.enter_context(data_plane(state / "dp", table(triton), stack.redis_url))
        port = free_port()
        peer = exits.enter_context(
            running_process(
                ["-m", "uvicorn", "--workers", "2", "--port", str(port), "--log-level", "error",
                 "bench.fastapi_peer:app"],
                port, "/docs", {"PEER_TRITON": f"127.0.0.1:{stack.ports['triton_grpc']}"},
            )
        )  # fmt: skip
        relay_port = free_port()
        relay = exits.enter_context(
            running_process(
                ["-m", "bench.relay", str(relay_port), str(triton)], relay_port, "/v2/health/live"
            )
        )
        pids = ours.pids
        targets = [
            Target(OURS, ours.port, "/v2/models/plain/infer", pids),
            Target(CANARY, ours.port, "/v2/models/canary/infer", pids),
            Target(EXPERIMENT, ours.port, "/v2/models/experiment/infer", pids),
            Target(OURS + WIDE, ours.port, "/v2/models/wide/infer", pids, 768),
            Target(RELAY, relay.port, "/v2/models/flowers.1/versions/1/infer", relay.pids),
            Target(PEER, peer.port, "/v2/models/flowers/infer", peer.pids),
        ]
        for suffix, name, width in (("", "flowers", 4), (WIDE, "wide", 768)):
            for title, model in ((DIRECT, f"{name}.1"), (BATCHED, f"{name}.batched")):
                path = f"/v2/models/{model}/versions/1/infer"
                targets.append(Target(title + suffix, triton, path, (), width))
        yield {target.name: target for target in targets}


def measure(
    targets: list[Target],
    connections: int,
    options: argparse.Namespace,
    rate: float | None = None,
) -> Samples:
    """Return the samples of each target; the targets take turns within a round."""
    samples: Samples = {target.name: [] for target in targets}
    for _ in range(options.rounds):
        for target in targets:
            samples[target.name].append(sample(target, connections, options.seconds, rate))
    return samples


def print_closed(title: str, samples: Samples, suffix: str = "") -> None:
    """Print medians over the rounds, and ratios within the rounds."""
    print(f"\n### {title.replace('1 connections', '1 connection')}, closed loop\n")
    print(f"| target | requests/s | × {DIRECT} | × {BATCHED} | p50 ms | p95 ms | p99 ms "
          f"| own µs | all µs | requests per CPU-second × {DIRECT} | × {BATCHED} |")  # fmt: skip
    print("| --- " * 11 + "|")
    for name, rows in samples.items():
        direct, batched = samples[DIRECT + suffix], samples[BATCHED + suffix]
        cells = [
            name,
            f"{median(row.per_second for row in rows):,.0f}",
            ratio(rows, direct, "per_second"),
            ratio(rows, batched, "per_second"),
            *(f"{median(getattr(row, field) for row in rows):.2f}" for field in PERCENTILES),
            f"{median(row.own_us for row in rows):.0f}",
            f"{median(row.all_us for row in rows):.0f}",
            # Inverted: more requests per CPU-second are fewer CPU-seconds per request.
            ratio(direct, rows, "all_us"),
            ratio(batched, rows, "all_us"),
        ]
        print(f"| {' | '.join(cells)} |")
    _print_errors(samples)


def print_constant(title: str, samples: Samples) -> None:
    """Print the results of a constant rate."""
    print(f"\n### {title}\n")
    print("| target | answered/s | p50 ms | p95 ms | p99 ms | all µs |")
    print("| --- " * 6 + "|")
    for name, rows in samples.items():
        cells = [
            name,
            f"{median(row.per_second for row in rows):,.0f}",
            *(f"{median(getattr(row, field) for row in rows):.2f}" for field in PERCENTILES),
            f"{median(row.all_us for row in rows):.0f}",
        ]
        print(f"| {' | '.join(cells)} |")
    _print_errors(samples)


def _print_errors(samples: Samples) -> None:
    for name, rows in samples.items():
        errors = sum(row.errors for row in rows)
        if errors:
            print(f"\n{errors:,.0f} errors at {name}")
    sys.stdout.flush()


def ratio(rows: list[Sample], base: list[Sample], field: str) -> str:
    """Return the median over the rounds of `field` as a multiple of `base`'s."""
    pairs = zip(rows, base, strict=True)
    return f"{median(getattr(a, field) / getattr(b, field) for a, b in pairs):.2f}"


if __name__ == "__main__":
    main()
