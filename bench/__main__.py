"""The command `python -m bench NAME`, which runs a benchmark that prints a table."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    "dataplane": "requests through the data plane compared with Triton's own HTTP endpoint",
    "start": "CPU-seconds until ready, and memory at rest, of each process of ./run up",
    "slow": "the demo while busy loops use 90 % of each core (half an hour)",
    "against": "this data plane compared with that of a commit: ./run bench against COMMIT",
    "cache": "responses from the cache compared with a bare asyncio protocol",
    "publication": "the cost of ticks, publications and polls at 1,000 models, with bars",
    "tables": "the cost of a routing table of 10,000 models, and the time until a new one serves",
    "soak": "memory and responses of one data plane over an hour (./run soak)",
    "attack": "service to normal clients during hostile requests (./run attack)",
    "quota": "requests that a fleet admits of a quota in 10 s, by distribution of load",
    "overload": "requests answered in time when the load exceeds a model's capacity",
    "ingest": "outcomes and exposures per second that reach PostgreSQL",
    "growth": "bytes per row of each growing table, and sizes after a year at 1,000/s and 10,000/s",
    "experiments": "time to compute results of up to 10,000,000 units (./run bench-experiments)",
    "warehouse": "the same statistics from Parquet files, with DuckDB",
    "decisions": "error rates and speed of the decisions of rollouts and experiments",
}


def main(arguments: list[str]) -> int:
    """Run the benchmark in `arguments`, or list all."""
    if not arguments or arguments[0] not in BENCHMARKS:
        for name, text in BENCHMARKS.items():
            print(f"{name:<12} {text}")
        return 0 if not arguments else 2
    # A benchmark with bars returns 1 if one of them is missed.
    return importlib.import_module(f"bench.{arguments[0]}").main() or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
