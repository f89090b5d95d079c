"""Runs the demo while busy loops take nine tenths of each core, and says how it went.

It takes about ten times as long as the demo on a quiet machine, and fails where the demo does or
where the loops did not get their share.
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
# Of the share asked for: what the loops must really have had, or the machine was not busy.
TAKEN_MIN = 0.85


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run bench slow", description=__doc__)
    parser.add_argument("--share", type=float, default=SHARE, help="of each core (default: 0.9)")
    parser.add_argument("--state-dir", help="where the stack's state and logs stay afterwards")
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
        print("the loops did not get their share: others were busy as well, or it was not kept")
        return 1
    return code


def _play(state_dir: str) -> int:
    """Run the demo at the lowest priority; return its exit code."""
    command = [sys.executable, "-m", "embedded", "demo", "--exit", "--state-dir", state_dir]
    # By the command: what runs between fork and exec must not be Python.
    demo = subprocess.Popen(["nice", "-n", str(LOWEST), *command], cwd=ROOT, start_new_session=True)
    yielding = Yielding(demo.pid)
    yielding.start()
    try:
        return demo.wait()
    finally:
        demo.terminate()
        demo.wait()
        yielding.stop()
