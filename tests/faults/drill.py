"""`./run drill` breaks each part of a whole stack in turn, under load, and accounts for all data.

The stack is real, with two data-plane workers. The load is 200 requests/s to a model whose versions
give different predictions, with half of the traffic on a canary; every response is compared with
the expected prediction of its version. Another load sends 30 outcomes/s; each acknowledged outcome
must be stored exactly once. Disks are file systems of limited size in the drill's own mount
namespace.
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
from tests.faults.drill_faults import Fault, Held, select_faults
from tests.faults.drill_load import HEAD, CheckedLoad, Expected, Row, judge
from tests.faults.ground import PARTS, SETTINGS, Ground, processes, wait_until
from tests.faults.load import Outcomes
from tests.faults.seed import FRAGILE, HELD, METRIC, MODEL, VERSIONS

SECONDS = 5.0
LEAD_S = 1.0
# The time limit of the whole drill, which fails if it is exceeded.
TOTAL_S = 900.0
# A part that has not recovered after this time counts as lost.
BACK_WITHIN_S = 90.0
# After this time without a further outcome, a missing outcome counts as lost.
STILL_S = 20.0
DISK_MB = {"dataplane": 64, "redis": 128, "postgres": 768}
MOUNTED = "INTERLOCK_DRILL_MOUNTS"


def main(arguments: Sequence[str]) -> int:
    """Run the drill and print a table, row by row; return 1 if something is wrong or lost."""
    parser = argparse.ArgumentParser(prog="./run drill", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="run only faults whose name contains NAME; repeatable",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=SECONDS, help="duration of each fault")
    parser.add_argument("--list", action="store_true", help="print the names of the faults")
    options = parser.parse_args(arguments)
    faults = select_faults(options.only)
    if not faults:
        parser.error(f"no fault's name contains {' or '.join(options.only)}")
    if options.list:
        print("\n".join(fault.name for fault in faults))
        return 0
    if MOUNTED not in os.environ and (prefix := mount_prefix()):
        env = {**os.environ, MOUNTED: "yes"}
        command = [*prefix, sys.executable, "-m", "tests.faults.drill", *arguments]
        return subprocess.run(command, env=env, check=False).returncode
    return drill(faults, options.seconds, can_mount=MOUNTED in os.environ)


def mount_prefix() -> list[str]:
    """Return a command prefix for a new mount namespace; empty if that is not possible."""
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
                print(f"| {fault.name} | not run: cannot mount a file system | | | | |")
                continue
            if monotonic() - began > TOTAL_S:
                print(f"| {fault.name} | **not run**: over the limit of {TOTAL_S:g} s | | | | |")
                late += 1
                continue
            rows.append(run_fault(ground, expected, fault, f"d{number}", seconds))
            print(rows[-1], flush=True)
    checked, acknowledged = (sum(getattr(row, name) for row in rows) for name in SUMMED[:2])
    wrong, lost, doubled = (sum(getattr(row, name) for row in rows) for name in SUMMED[2:])
    print(
        f"\n{len(rows)} faults in {monotonic() - began:.0f} s: {checked:,} responses checked, "
        f"{wrong} wrong; {acknowledged:,} outcomes acknowledged, {lost} lost, {doubled} doubled."
    )
    return int(late or any(row.is_bad for row in rows))


SUMMED = ("checked", "acknowledged", "wrong", "lost", "doubled")


@contextmanager
def ground_of(can_mount: bool) -> Iterator[tuple[Ground, Expected]]:
    """Start a stack whose versions have different weights, on disks that can be filled."""
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


def run_fault(ground: Ground, expected: Expected, fault: Fault, prefix: str, seconds: float) -> Row:
    """Cause one fault under load, wait until everything has recovered, and account for the data."""
    ground.settle(BACK_WITHIN_S)
    wait_until(lambda: fault.is_back(ground), BACK_WITHIN_S, f"{fault.name}: its part is there")
    rollout = ground.start_rollout(plan=HELD)
    wait_until(lambda: ground.phase(rollout) == "baking", BACK_WITHIN_S, "half goes to the canary")
    load = CheckedLoad(ground.port, MODEL, expected)
    with load, Outcomes(ground.port, prefix, METRIC) as sent:
        sleep(LEAD_S)
        with fault.begin(ground, seconds) as held:
            back_s = _back(fault, ground, load, held)
            # The load lasts as long for a fault that recovers at once as for the others.
            sleep(max(0.0, held.since + seconds - monotonic()))
    replaced = fault.replaced(ground, prefix)
    stored = _stored(ground, prefix, sent.accepted - replaced)
    return judge(fault.name, load.answers, sent, stored, back_s, replaced - set(stored))


def _back(fault: Fault, ground: Ground, load: CheckedLoad, held: Held) -> float | None:
    """Return the seconds until the part recovered and all requests succeed; None: it did not."""

    def is_back() -> bool:
        return fault.is_back(ground) and not held.victims & processes().keys()

    try:
        wait_until(is_back, BACK_WITHIN_S, "back")
        back_s = monotonic() - held.since
        healed_at = monotonic()
        wait_until(lambda: load.is_well(healed_at), BACK_WITHIN_S, "all requests succeed")
    except AssertionError:
        return None
    return back_s


def _stored(ground: Ground, prefix: str, expected: set[str]) -> list[str]:
    """Return the stored outcomes, once all expected ones are stored or no more arrive."""
    stored: list[str] = []
    still_since = monotonic()
    while monotonic() - still_since < STILL_S:
        units = ground.stored_outcomes(prefix)
        if set(units) >= expected:
            return units
        if len(units) != len(stored):
            still_since = monotonic()
        stored = units
        sleep(0.2)
    return stored


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
