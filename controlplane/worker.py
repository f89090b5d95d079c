"""`python -m controlplane.worker` runs the Celery worker processes.

It starts Celery without its command line, which imports an interactive shell.
"""

from __future__ import annotations

import argparse
import gc
import sys
from typing import Any

from celery.signals import worker_before_create_process

from controlplane.broker import refuse_cluster_or_exit
from controlplane.celery import app

CONCURRENCY = 2


@worker_before_create_process.connect
def share_memory(**_: Any) -> None:
    """Exclude imported objects from garbage collection, which would copy them into each process."""
    gc.collect()
    gc.freeze()


def main(arguments: list[str] | None = None) -> int:
    """Run until a signal; return Celery's exit code."""
    parser = argparse.ArgumentParser(prog="controlplane.worker", description=__doc__)
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY, help="processes")
    options = parser.parse_args(arguments)
    refuse_cluster_or_exit()
    # Workers do not need to know each other: no gossip and no mingle.
    worker = app.Worker(
        concurrency=options.concurrency,
        pool_cls="prefork",
        loglevel="INFO",
        without_gossip=True,
        without_mingle=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    sys.exit(main())
