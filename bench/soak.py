"""Measures memory and responses of one instance at a constant rate over a long time: `./run soak`.

Half of the requests have new rows, so that every bounded structure (units, exposures, cache,
shapes) fills to its limit. The routing table has 1,000 models.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench.testbed import Target, data_plane, machine, resident_mb, sample, table, write_models
from embedded.stack import running

TURN_S = 20.0
RATE = 4_000
CONNECTIONS = 64
MODELS = 1_000
ROWS = 20_000


def main() -> None:
    """Print a line per round over the models until the time is over."""
    parser = argparse.ArgumentParser(prog="soak")
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args(sys.argv[2:])
    print(f"{machine()}; {RATE:,} requests/s in turn to a plain, a split and a cached model\n")
    print("| minutes | resident MB of a worker | answered/s | p99 ms | errors |")
    print("| --- " * 5 + "|")
    with ExitStack() as exits:
        state = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        write_models(state / "triton" / "repository")
        stack = exits.enter_context(running(state, {"redis", "triton"}))
        document = table(stack.ports["triton_http"], MODELS)
        process = exits.enter_context(data_plane(state / "dp", document, stack.redis_url))
        plain = Target("plain", process.port, "/v2/models/plain/infer", process.pids, rows=ROWS)
        targets = [
            replace(plain, path=f"/v2/models/{name}/infer")
            for name in ("plain", "canary", "experiment", "cached")
        ]
        started_at = time.monotonic()
        while (passed_s := time.monotonic() - started_at) < options.minutes * 60:
            samples = [sample(target, CONNECTIONS, TURN_S, RATE) for target in targets]
            cells = [
                f"{passed_s / 60:.1f}",
                f"{max(map(resident_mb, process.pids)):.1f}",
                f"{sum(item.per_second for item in samples) / len(samples):,.0f}",
                f"{max(item.p99_ms for item in samples):.1f}",
                f"{sum(item.errors for item in samples):,.0f}",
            ]
            print(f"| {' | '.join(cells)} |")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
