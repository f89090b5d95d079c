"""Break each part of a whole stack in turn, under load, and account for everything: `./run drill`.

A real stack with two data-plane workers. Two hundred requests a second are asked of a model whose
versions answer differently, half of its traffic on a canary, and every answer is held against what
its version says. Thirty outcomes a second are sent; each that was acknowledged must be stored once.
Disks are file systems of a bounded size in a mount namespace of the drill's own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from time import monotonic, sleep

from embedded.stack import running
from tests.faults.artifact import write_artifact
from tests.faults.drill_faults import Fault, Held, chosen
from tests.faults.drill_load import HEAD, CheckedLoad, Expected, Row, judge
from tests.faults.ground import PARTS, SETTINGS, Ground, processes, wait_until
from tests.faults.load import Outcomes
from tests.faults.seed import FRAGILE, HELD, METRIC, MODEL, VERSIONS

SECONDS = 5.0
LEAD_S = 1.0
# A machine on which so much goes wrong that this is not enough fails the drill.
TOTAL_S = 900.0
# A part that is not back within so long counts as lost.
BACK_WITHIN_S = 90.0
# After so long without a further one, an outcome that has not come will not.
STILL_S = 20.0
DISK_MB = {"dataplane": 64, "redis": 128, "postgres": 768}
MOUNTED = "INTERLOCK_DRILL_MOUNTS"


def main(arguments: Sequence[str]) -> int:
    """Print the table, a row as soon as it is known; return 1 where something is wrong or lost."""
    parser = argparse.ArgumentParser(prog="./run drill", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="only faults with this in their name; repeatable",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=SECONDS, help="each fault lasts so long")
    parser.add_argument("--list", action="store_true", help="print the names of the faults")
    options = parser.parse_args(arguments)
    faults = chosen(options.only)
    if not faults:
        parser.error(f"no fault has {' or '.join(options.only)} in its name")
    if options.list:
        print("\n".join(fault.name for fault in faults))
        return 0
    if MOUNTED not in os.environ and (prefix := mount_prefix()):
        env = {**os.environ, MOUNTED: "yes"}
        command = [*prefix, sys.executable, "-m", "tests.faults.drill", *arguments]
        return subprocess.run(command, env=env, check=False).returncode
    return drill(faults, options.seconds, can_mount=MOUNTED in os.environ)


def mount_prefix() -> list[str]:
    """Return what gives a command a mount namespace of its own; empty where none is to be had."""
    prefix = ["unshare", "--mount", "--propagation", "private"]
    if os.geteuid() != 0:
        prefix.append("--map-root-user")
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "drill", folder]
        try:
            done = subprocess.run([*prefix, *mount], capture_output=True, check=False)
        except FileNotFoundError:
            return []
    return prefix if done.returncode == 0 else []


def drill(faults: Sequence[Fault], seconds: float, *, can_mount: bool) -> int:
    os.environ.update(SETTINGS)
    began = monotonic()
    rows, late = [], 0
    with ground_of(can_mount) as (ground, expected):
        print(f"ready after {monotonic() - began:.0f} s\n\n{HEAD}", flush=True)
        for number, fault in enumerate(faults):
            if fault.disk and not can_mount:
                print(f"| {fault.name} | not run: no file system can be mounted here | | | | |")
                continue
            if monotonic() - began > TOTAL_S:
                print(f"| {fault.name} | **not run**: {TOTAL_S:g} s are over | | | | |")
                late += 1
                continue
            rows.append(one(ground, expected, fault, f"d{number}", seconds))
            print(rows[-1], flush=True)
    checked, acknowledged = (sum(getattr(row, name) for row in rows) for name in ADDED[:2])
    wrong, lost, doubled = (sum(getattr(row, name) for row in rows) for name in ADDED[2:])
    print(
        f"\n{len(rows)} faults in {monotonic() - began:.0f} s: {checked:,} answers checked, "
        f"{wrong} wrong; {acknowledged:,} outcomes acknowledged, {lost} lost, {doubled} doubled."
    )
    return int(late or any(row.is_bad for row in rows))


ADDED = ("checked", "acknowledged", "wrong", "lost", "doubled")


@contextmanager
def ground_of(can_mount: bool) -> Iterator[tuple[Ground, Expected]]:
    """Start a stack whose versions have weights of their own, on disks that can be filled."""
    with ExitStack() as exits:
        state = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="interlock-drill-")))
        for name, size_mb in DISK_MB.items() if can_mount else ():
            exits.enter_context(mounted(state / name, size_mb))
        numbers = (*VERSIONS, FRAGILE)
        artifacts = {str(n): write_artifact(state / f"flowers-{n}.onnx", seed=n) for n in numbers}
        stack = exits.enter_context(running(state, only=(*PARTS, "mlflow")))
        ground = Ground(stack, list(artifacts.values()))
        exits.enter_context(closing(ground.control))
        yield ground, Expected(artifacts)


@contextmanager
def mounted(directory: Path, size_mb: int) -> Iterator[None]:
    directory.mkdir(mode=0o700)
    options = f"size={size_mb}m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "drill", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def one(ground: Ground, expected: Expected, fault: Fault, prefix: str, seconds: float) -> Row:
    """Let one fault happen under load, wait until all is well again, and account for it."""
    ground.settle(BACK_WITHIN_S)
    wait_until(lambda: fault.is_back(ground), BACK_WITHIN_S, f"{fault.name}: its part is there")
    rollout = ground.start_rollout(plan=HELD)
    wait_until(lambda: ground.phase(rollout) == "baking", BACK_WITHIN_S, "half goes to the canary")
    load = CheckedLoad(ground.port, MODEL, expected)
    with load, Outcomes(ground.port, prefix, METRIC) as sent:
        sleep(LEAD_S)
        with fault.begin(ground, seconds) as held:
            back_s = _back(fault, ground, load, held)
            # One that was back at once is under load for as long as the others.
            sleep(max(0.0, held.since + seconds - monotonic()))
    gone = fault.gone(ground, prefix)
    stored = _stored(ground, prefix, sent.accepted - gone)
    return judge(fault.name, load.answers, sent, stored, back_s, gone - set(stored))


def _back(fault: Fault, ground: Ground, load: CheckedLoad, held: Held) -> float | None:
    """Return how long the part took to be back, once all are answered too; None: it is not."""

    def is_back() -> bool:
        return fault.is_back(ground) and not held.victims & processes().keys()

    try:
        wait_until(is_back, BACK_WITHIN_S, "back")
        back_s = monotonic() - held.since
        healed_at = monotonic()
        wait_until(lambda: load.is_well(healed_at), BACK_WITHIN_S, "all are answered")
    except AssertionError:
        return None
    return back_s


def _stored(ground: Ground, prefix: str, wanted: set[str]) -> list[str]:
    """Return the stored outcomes, once all that are wanted are there or no more come."""
    stored: list[str] = []
    still_since = monotonic()
    while monotonic() - still_since < STILL_S:
        found = ground.stored_outcomes(prefix)
        if set(found) >= wanted:
            return found
        if len(found) != len(stored):
            still_since = monotonic()
        stored = found
        sleep(0.2)
    return stored


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
