"""Runs the demo while busy loops use 90 % of each core, and prints the result.

It takes about ten times as long as the demo on an idle machine. It fails if the demo fails or if
the loops did not get their share.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time

from bench.busy import LOWEST, Yielding, busy
from embedded.state import ROOT

SHARE = 0.9
# The smallest valid part of the requested share that the loops must have used.
TAKEN_MIN = 0.85


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run bench slow", description=__doc__)
    parser.add_argument(
        "--share", type=float, default=SHARE, help="share of each core for the loops (default: 0.9)"
    )
    parser.add_argument("--state-dir", help="where the stack keeps its state and logs afterwards")
    options = parser.parse_args(sys.argv[2:])
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="interlock-slow-") as scratch,
        busy(options.share) as loops,
    ):
        code = _play(options.state_dir or scratch)
        taken = loops.taken()
    shares = ", ".join(f"{share:.0%}" for share in taken)
    print(f"demo: exit code {code} after {time.monotonic() - began:.0f} s; loops took {shares}")
    if min(taken) < TAKEN_MIN * options.share:
        print("the loops did not get their share, so that the machine was not busy as requested")
        return 1
    return code


def _play(state_dir: str) -> int:
    """Run the demo at the lowest priority; return its exit code."""
    command = [sys.executable, "-m", "embedded", "demo", "--exit", "--state-dir", state_dir]
    # By a command, since no Python code may run between fork and exec.
    demo = subprocess.Popen(["nice", "-n", str(LOWEST), *command], cwd=ROOT, start_new_session=True)
    yielding = Yielding(demo.pid)
    yielding.start()
    try:
        return demo.wait()
    finally:
        demo.terminate()
        demo.wait()
        yielding.stop()
