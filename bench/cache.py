"""Compares responses from the cache with a bare httptools protocol that returns a constant.

The load is one hot key, or 10,000 keys in turn, in a closed loop of 64 connections. The shared
cache in Redis is measured at one connection, on an instance whose own cache has one entry. `per
core` is the rate that the server's CPU time alone allows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import httpx

from bench import flowers
from bench.dataplane import Samples, measure, ratio
from bench.testbed import (
    KEY,
    Target,
    check,
    data_plane,
    free_port,
    machine,
    running_process,
    table,
    write_models,
)
from embedded.stack import running

BARE = "bare protocol"
HOT = "in process, one key"
MANY = "in process, 10,000 keys"
UNCACHED = "not cached"
SHARED = "in Redis, 10,000 keys"


def main() -> None:
    """Print a table for the local cache, and one for the shared cache."""
    parser = argparse.ArgumentParser(prog="bench cache")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args(sys.argv[2:])
    print(f"{machine()}; load generator on the same machine; medians of {options.rounds} rounds")
    with stand() as targets:
        for target in targets.values():
            if target.name != BARE:
                check(target)
                fill(target)
        local = [targets[name] for name in (BARE, HOT, MANY, UNCACHED)]
        print_table("64 connections", measure(local, 64, options))
        shared = [targets[name] for name in (SHARED, UNCACHED)]
        print_table("1 connection", measure(shared, 1, options))


@contextmanager
def stand() -> Iterator[dict[str, Target]]:
    """Start the servers; yield the targets by name."""
    with ExitStack() as exits:
        state = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        write_models(state / "triton" / "repository")
        stack = exits.enter_context(running(state, {"redis", "triton"}))
        document = table(stack.ports["triton_http"])
        ours = exits.enter_context(data_plane(state / "dp", document, stack.redis_url))
        small = exits.enter_context(
            data_plane(state / "small", document, stack.redis_url, INTERLOCK_CACHE_ENTRIES_MAX="1")
        )
        port = free_port()
        bare = exits.enter_context(running_process(["-m", "bench.hello", str(port)], port, "/"))
        cached, shared = "/v2/models/cached/infer", "/v2/models/shared/infer"
        targets = [
            Target(BARE, bare.port, cached, bare.pids),
            Target(HOT, ours.port, cached, ours.pids),
            Target(MANY, ours.port, cached, ours.pids, rows=10_000),
            Target(UNCACHED, ours.port, "/v2/models/plain/infer", ours.pids),
            Target(SHARED, small.port, shared, small.pids, rows=10_000),
        ]
        yield {target.name: target for target in targets}


def fill(target: Target) -> None:
    """Send each row once, so that the runs have cache hits."""
    url = f"http://127.0.0.1:{target.port}{target.path}"
    with httpx.Client(headers={"x-api-key": KEY}) as client:
        for i in range(target.rows):
            client.post(url, content=flowers.body(target.width, i / 1_000)).raise_for_status()


def print_table(title: str, samples: Samples) -> None:
    """Print medians over the rounds, and the ratio to the first target within each round."""
    first = next(iter(samples))
    print(f"\n### {title}\n")
    print(f"| target | requests/s | × {first} | p50 ms | p99 ms | own µs | per core |")
    print("| --- " * 7 + "|")
    for name, rows in samples.items():
        own_us = median(row.own_us for row in rows)
        cells = [
            name,
            f"{median(row.per_second for row in rows):,.0f}",
            ratio(rows, samples[first], "per_second"),
            f"{median(row.p50_ms for row in rows):.2f}",
            f"{median(row.p99_ms for row in rows):.2f}",
            f"{own_us:.1f}",
            f"{1e6 / own_us:,.0f}",
        ]
        print(f"| {' | '.join(cells)} |")
        errors = sum(row.errors for row in rows)
        if errors:
            print(f"\n{errors:,.0f} errors at {name}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
