"""Compares this data plane with that of another commit, on the same Triton and machine.

The commit is cloned. Both data planes start from the same routing table and get load in turn, in an
order that alternates between rounds. Ratios are computed within a round, so that drift of the
machine affects both parts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.testbed import (
    Process,
    Sample,
    Target,
    check,
    data_plane,
    machine,
    sample,
    table,
    write_models,
)
from embedded.stack import Stack, running

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("plain", "cached", "canary")
NOW, THEN = "now", "then"


@dataclass(frozen=True)
class Ratio:
    """The geometric mean of the rounds' ratios of now to then, and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, now: list[float], then: list[float]) -> Ratio:
        logs = np.log(np.array(now) / np.array(then))
        mean = float(np.exp(logs.mean()))
        return cls(mean, mean * float(logs.std(ddof=1)) / len(logs) ** 0.5)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}"


def main() -> int:
    """Print a row for each kind of request; return 1 if one costs more CPU than allowed."""
    parser = argparse.ArgumentParser(prog="./run bench against", description=__doc__)
    parser.add_argument("commit", help="the commit, tag or branch to compare with")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument(
        "--most", type=float, default=2.0, help="allowed additional CPU, percent (default: 2)"
    )
    options = parser.parse_args(sys.argv[2:])
    if options.rounds < 2:
        parser.error("--rounds must be at least 2, since one round has no standard error")
    with tempfile.TemporaryDirectory() as folder, stand(options.commit, Path(folder)) as planes:
        print(
            f"{machine()}; {options.connections} connections, {options.rounds} rounds of "
            f"{options.seconds:g} s; now ÷ {options.commit}, ± standard error\n"
        )
        print("| requests | throughput | own CPU | allowed | |\n| --- | --- | --- | --- | --- |")
        rows = [row(model, planes, options) for model in MODELS]
    return int(any(rows))


def clone(commit: str, into: Path) -> None:
    """Check out `commit` of this repository. Raises SystemExit if there is no such commit."""
    for command in (
        ["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(into)],
        ["git", "-C", str(into), "checkout", "--quiet", "--detach", commit],
    ):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{commit}: {done.stderr.strip()}")


@contextmanager
def stand(commit: str, folder: Path) -> Iterator[dict[str, Process]]:
    """Start Triton, Redis and both data planes; yield the data planes by name."""
    clone(commit, folder / "source")
    write_models(folder / "state" / "triton" / "repository")
    with ExitStack() as exits:
        stack: Stack = exits.enter_context(running(folder / "state", {"redis", "triton"}))
        stored = table(stack.ports["triton_http"])
        yield {
            name: exits.enter_context(
                data_plane(folder / name, stored, stack.redis_url, source=source)
            )
            for name, source in ((NOW, ROOT), (THEN, folder / "source"))
        }


def row(model: str, planes: dict[str, Process], options: argparse.Namespace) -> bool:
    """Measure one kind of request, print its row, and return whether its bar is missed."""
    samples = measure(model, planes, options)
    throughput, own = (
        Ratio.of(*([getattr(one, name) for one in samples[which]] for which in (NOW, THEN)))
        for name in ("per_second", "own_us")
    )
    allowed = 1.0 + options.most / 100.0
    is_missed = bool(own.mean - 2.0 * own.error > allowed)
    verdict = "MISSED" if is_missed else "met"
    print(f"| {model} | {throughput} | {own} | ≤ {allowed:.3f} | {verdict} |", flush=True)
    return is_missed


def measure(
    model: str, planes: dict[str, Process], options: argparse.Namespace
) -> dict[str, list[Sample]]:
    """Return the samples of both data planes, which alternate in starting a round."""
    targets = {
        name: Target(name, plane.port, f"/v2/models/{model}/infer", plane.pids)
        for name, plane in planes.items()
    }
    for target in targets.values():
        check(target)
        # The first seconds of a process warm up its allocator and caches.
        sample(target, options.connections, 1.0)
    samples: dict[str, list[Sample]] = {name: [] for name in targets}
    for number in range(options.rounds):
        for name in (NOW, THEN) if number % 2 else (THEN, NOW):
            one = sample(targets[name], options.connections, options.seconds)
            if one.errors:
                raise SystemExit(f"{model}: {one.errors:.0f} errors from data plane '{name}'")
            samples[name].append(one)
    return samples
