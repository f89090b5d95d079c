"""`python -m bench NAME`: each benchmark prints a table."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    "dataplane": "requests through the data plane against Triton's own HTTP endpoint",
    "start": "CPU-seconds until ready, and memory at rest, of each process of ./run up",
    "slow": "the demo while busy loops take nine tenths of each core (half an hour)",
    "against": "today's data plane against that of another commit: ./run bench against COMMIT",
    "cache": "answers from the cache against a bare protocol",
    "publication": "what ticks, publications and polls cost at 1,000 models, against bars",
    "tables": "what a routing table of 10,000 models costs, and how soon a published one serves",
    "soak": "memory and answers of one data plane over an hour (./run soak)",
    "attack": "what others feel while strangers send hostile requests (./run attack)",
    "quota": "what a fleet lets pass of a quota in ten seconds, whatever asks where",
    "overload": "what is answered in time when more is asked than a model can do",
    "ingest": "how many outcomes and exposures a second reach PostgreSQL",
    "growth": "bytes a row of every table that grows, and a year's size at 1,000/s and 10,000/s",
    "experiments": "how long a result of up to 10,000,000 units takes (./run bench-experiments)",
    "warehouse": "the same statistics from Parquet files, by DuckDB",
    "decisions": "how often rollouts and experiments decide rightly, and how soon",
}


def main(arguments: list[str]) -> int:
    """Run the benchmark that is named, or list them."""
    if not arguments or arguments[0] not in BENCHMARKS:
        for name, text in BENCHMARKS.items():
            print(f"{name:<12} {text}")
        return 0 if not arguments else 2
    # A benchmark with bars returns 1 where one of them is missed.
    return importlib.import_module(f"bench.{arguments[0]}").main() or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
