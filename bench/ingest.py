"""Measures the ingester's throughput in events per second, from a real Redis to a real PostgreSQL.

The ingester is the product's own process. Redis, PostgreSQL and this process run on the same
machine. It alternates with a baseline by the ORM: `bulk_create` of the same rows without
validation, with `ignore_conflicts` for duplicates.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import redis

from bench.testbed import machine
from contract.messages import FIELD, STREAM_EXPOSURES, STREAMS, Batch, decode_batch
from embedded.stack import Stack, running

if TYPE_CHECKING:
    from bench.ingest_load import Events, Setup

GOAL = 20_000
NAIVE_READ_COUNT = 100
# The ORM baseline is slow, so that it gets this many times fewer events.
NAIVE_SHARE = 5
# The worker's concurrent task, which folds the values of touched units in a loop.
FOLD = """
import time, django
django.setup()
from apps.experiments.unit_values import fold_touched
while True:
    fold_touched() or time.sleep(0.2)
"""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WITHIN_S = 120.0


def main() -> None:
    """Print events per second by kind of event and number of existing rows."""
    parser = argparse.ArgumentParser(prog="bench ingest", description=__doc__)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", type=int, nargs="+", default=[0, 1_000_000, 3_000_000])
    parser.add_argument("--consumers", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="duration of each run at a constant load"
    )
    options = parser.parse_args(sys.argv[2:])
    print(
        f"{machine()}; Redis, PostgreSQL, {options.consumers} ingester(s) and the sender on it; "
        f"{options.events:,} events a round"
    )
    with (
        tempfile.TemporaryDirectory(prefix="interlock-bench-") as directory,
        running(Path(directory), {"postgres", "redis"}) as stack,
    ):
        prepare(stack)
        Bench(stack, options).run()


def prepare(stack: Stack) -> None:
    """Configure Django in this process and its children to use the stack."""
    os.environ |= stack.env | {"DJANGO_SETTINGS_MODULE": "controlplane.settings"}
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


class Bench:
    """Measures the time to drain the streams at growing tables, then a constant load."""

    def __init__(self, stack: Stack, options: argparse.Namespace) -> None:
        from bench.ingest_load import Events, create_setup

        self.options = options
        self.client: redis.Redis[bytes] = redis.Redis.from_url(stack.redis_url)
        self.setup: Setup = create_setup()
        self.events: Events = Events(self.setup)

    def run(self) -> None:
        from bench.ingest_load import KINDS, grow

        print("\n| rows in each table | events | events/s | ORM bulk_create | × the ORM |")
        print("| --- | --- | --- | --- | --- |", flush=True)
        before = 0
        for rows in self.options.rows:
            grow(self.setup, before, rows)
            before = rows
            for kind in KINDS:
                self.compare(rows, kind)
        self.sustained(before, is_folding=False)
        self.sustained(before, is_folding=True)

    def compare(self, rows: int, kind: str) -> None:
        """Print the throughput for a kind of events; ingester and ORM alternate in each round."""
        ours, naive = [], []
        for _ in range(self.options.rounds):
            ours.append(self.drained(kind))
            naive.append(self.naive(kind))
        ratio = median(a / b for a, b in zip(ours, naive, strict=True))
        cells = (f"{rows:,}", kind, f"{median(ours):,.0f}", f"{median(naive):,.0f}", f"{ratio:.2f}")
        print(f"| {' | '.join(cells)} |", flush=True)

    def drained(self, kind: str) -> float:
        """Return the ingester's events per second, from a full stream until it is empty."""
        entries = self.events.entries(kind, self.options.events)
        with self.consumers():
            started = time.perf_counter()
            self.send(entries)
            self.wait_until_empty()
            return float(self.options.events / (time.perf_counter() - started))

    def sustained(self, rows: int, *, is_folding: bool) -> None:
        """Print the backlog of the ingester at a constant load of the goal."""
        from bench.ingest_load import MIXED

        entries = self.events.entries(MIXED, int(GOAL * self.options.seconds))
        # Twenty parts per second.
        size = max(1, len(entries) // int(20 * self.options.seconds))
        lengths, longest = [], 0.0
        with ExitStack() as exits:
            exits.enter_context(self.consumers())
            if is_folding:
                exits.enter_context(process(["-c", FOLD]))
            started = time.perf_counter()
            for turn, start in enumerate(range(0, len(entries), size)):
                time.sleep(max(0.0, started + turn / 20 - time.perf_counter()))
                self.send(entries[start : start + size])
                lengths.append(self.waiting())
                longest = max(longest, self.oldest_s())
            self.wait_until_empty()
            behind_s = max(0.0, time.perf_counter() - started - self.options.seconds)
            units = touched()
        print(
            f"\n{GOAL:,} events/s (both) for {self.options.seconds:.0f} s with {rows:,} rows"
            f"{', with concurrent folding of values' if is_folding else ''}: at most "
            f"{max(lengths):,} entries waited, the oldest for {longest:.1f} s; empty "
            f"{behind_s:.1f} s after the last entry"
            + (f"; {units:,} units left to fold" if is_folding else ""),
            flush=True,
        )

    def send(self, entries: list[tuple[str, bytes]]) -> None:
        from bench.ingest_load import send

        send(self.client, entries, self.setup.sealer)

    def waiting(self) -> int:
        return sum(self.client.xlen(stream) for stream in STREAMS)

    def oldest_s(self) -> float:
        """Return the age of the oldest entry in seconds."""
        now_ms = time.time() * 1_000
        first_entries = [self.client.xrange(stream, count=1) for stream in STREAMS]
        times = [int(entries[0][0].partition(b"-")[0]) for entries in first_entries if entries]
        return max((now_ms - at for at in times), default=0.0) / 1_000

    def wait_until_empty(self) -> None:
        end = time.monotonic() + WITHIN_S
        while self.waiting():
            if time.monotonic() > end:
                raise SystemExit(f"{self.waiting()} entries are left after {WITHIN_S:.0f} s")
            time.sleep(0.01)

    @contextmanager
    def consumers(self) -> Iterator[None]:
        """Run ingesters; they are waiting for entries when the block starts."""
        with ExitStack() as exits:
            for number in range(self.options.consumers):
                exits.enter_context(self.consumer(f"bench-{number}"))
            yield

    @contextmanager
    def consumer(self, name: str) -> Iterator[None]:
        with process(["manage.py", "ingest", "--consumer", name]) as started:
            while not self.is_reading(name):
                if started.poll() is not None:
                    raise SystemExit(f"the ingester ended with {started.returncode}")
                time.sleep(0.02)
            yield

    def is_reading(self, name: str) -> bool:
        client: Any = self.client
        try:
            consumers = client.xinfo_consumers(STREAMS[-1], "ingest")
        except redis.ResponseError:
            return False
        return any(each["name"] == name.encode() and each["idle"] < 1_000 for each in consumers)

    # --- the ORM baseline ---

    def naive(self, kind: str) -> float:
        """Return the events per second of a consumer that creates rows by the ORM."""
        events = self.options.events // NAIVE_SHARE
        self.send(self.events.entries(kind, events))
        started = time.perf_counter()
        for stream in STREAMS:
            while entries := self.client.xrange(stream, count=NAIVE_READ_COUNT):
                create_rows(stream, [decode_batch(fields[FIELD]) for _, fields in entries])
                self.client.xdel(stream, *(entry_id for entry_id, _ in entries))
        return float(events / (time.perf_counter() - started))


@contextmanager
def process(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python process of the product while the block runs."""
    started = subprocess.Popen([sys.executable, *arguments])
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(10)


def touched() -> int:
    """Return the number of touched units that wait to be folded, and delete them."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM experiments_touchedunit")
        count = int(cursor.fetchone()[0])
        cursor.execute("TRUNCATE experiments_touchedunit")
    return count


def create_rows(stream: str, batches: list[Batch]) -> None:
    """Create rows by the ORM, without the product's ingestion."""
    from django.db import transaction

    from apps.experiments.models import ExposureRow, Metric, OutcomeRow, TouchedUnit

    with transaction.atomic():
        if stream == STREAM_EXPOSURES:
            exposures = [each for batch in batches for each in batch.exposures]
            ExposureRow.objects.bulk_create(
                [
                    ExposureRow(
                        experiment_id=each.experiment, unit=each.unit, variant_name=each.variant,
                        version_number=each.version, tenant=each.tenant, bucket=0,
                        attributes=each.attributes,
                        at=EPOCH + timedelta(milliseconds=each.at_ms),
                    )
                    for each in exposures
                ],
                ignore_conflicts=True,
            )  # fmt: skip
            units = {each.unit for each in exposures}
        else:
            outcomes = [each for batch in batches for each in batch.outcomes]
            metrics = dict(Metric.objects.values_list("name", "pk"))
            OutcomeRow.objects.bulk_create(
                [
                    OutcomeRow(
                        event_id=each.event_id, unit=each.unit_id,
                        metric_id=metrics[each.metric], value=each.value,
                        occurred_at=EPOCH + timedelta(milliseconds=each.occurred_at_ms),
                    )
                    for each in outcomes
                ],
                ignore_conflicts=True,
            )  # fmt: skip
            units = {each.unit_id for each in outcomes}
        TouchedUnit.objects.bulk_create([TouchedUnit(unit=unit) for unit in units])


if __name__ == "__main__":
    main()
