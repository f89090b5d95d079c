"""The faults of the drill: how each begins and ends, and how its recovery is detected."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import httpx
import psycopg
import redis

from tests.faults.backup import dump, replaced_outcomes, restore, start_epoch
from tests.faults.ground import Ground, processes, wait_until

# The parts of a stack besides the data plane's processes.
SERVERS = ("ingest", "worker", "beat", "web", "triton", "redis", "postgres", "mlflow")
WORKERS = 2
BALLAST = ".ballast"
PAGE = 4_096
FELT_WITHIN_S = 20.0


@dataclass(frozen=True)
class Held:
    """A fault in progress: the start of the recovery time, and the processes that must end."""

    since: float
    victims: frozenset[int] = frozenset()


# Causes a fault; the end of the block ends it, unless it ends by itself.
Begin = Callable[[Ground, float], AbstractContextManager[Held]]
IsBack = Callable[[Ground], bool]


@dataclass(frozen=True)
class Fault:
    """`begin` causes the fault; its number of seconds applies to faults without self-repair."""

    name: str
    begin: Begin
    is_back: IsBack
    # The directory whose disk is filled; such a fault needs its own file system.
    disk: str = ""
    # Returns the outcomes with a prefix that were stored only in the replaced database.
    replaced: Callable[[Ground, str], set[str]] = lambda ground, prefix: set()


def all_faults() -> list[Fault]:
    """Return the faults in order: killed, stopped, disk full, and last a restore."""
    return [
        Fault("data-plane parent killed", kill_leader("dataplane"), serves),
        *[Fault(f"data-plane worker {n + 1} killed", kill_worker(n), serves) for n in (0, 1)],
        *[Fault(f"{part} killed", kill_leader(part), back_of(part)) for part in SERVERS],
        Fault("data-plane parent stopped", stop_parent, serves),
        *[Fault(f"data-plane worker {n + 1} stopped", stop_worker(n), serves) for n in (0, 1)],
        *[Fault(f"{part} stopped", stop_tree(part), back_of(part)) for part in SERVERS],
        Fault("disk full: redis", fill_redis, back_of("redis"), disk="redis"),
        Fault("disk full: postgres", fill_postgres, back_of("postgres"), disk="postgres"),
        Fault("disk full: spool, redis stopped", fill_spool, serves, disk="dataplane"),
        Fault("postgres restored", restore_postgres, serves_newest, replaced=replaced_outcomes),
    ]


# --- killed --------------------------------------------------------------------------------------


def kill_leader(part: str) -> Begin:
    @contextmanager
    def begin(ground: Ground, for_s: float) -> Iterator[Held]:
        victim = ground.pid(part)
        yield Held(ground.kill(part), frozenset({victim}))

    return begin


def kill_worker(slot: int) -> Begin:
    @contextmanager
    def begin(ground: Ground, for_s: float) -> Iterator[Held]:
        victim = worker(ground, slot)
        at = monotonic()
        os.kill(victim, signal.SIGKILL)
        yield Held(at, frozenset({victim}))

    return begin


def worker(ground: Ground, slot: int) -> int:
    return sorted(processes(ground.pid("dataplane")))[slot]


# --- stopped -------------------------------------------------------------------------------------


def stop_tree(part: str) -> Begin:
    """Send SIGSTOP to the part and all descendants: PostgreSQL's backends have own sessions."""

    @contextmanager
    def begin(ground: Ground, for_s: float) -> Iterator[Held]:
        with ground.frozen(ground.tree(ground.pid(part))):
            sleep(for_s)
        yield Held(monotonic())

    return begin


def stop_worker(slot: int) -> Begin:
    @contextmanager
    def begin(ground: Ground, for_s: float) -> Iterator[Held]:
        victim = worker(ground, slot)
        with ground.frozen([victim]) as at:
            # Its parent kills it and starts another one.
            yield Held(at, frozenset({victim}))

    return begin


@contextmanager
def stop_parent(ground: Ground, for_s: float) -> Iterator[Held]:
    with ground.frozen([ground.pid("dataplane")]):
        sleep(for_s)
    yield Held(monotonic())


# --- disks ---------------------------------------------------------------------------------------


@contextmanager
def full(directory: Path) -> Iterator[None]:
    """Fill the directory's file system completely while the `with` block runs."""
    ballast = directory / BALLAST
    try:
        with ballast.open("wb") as file:
            _take_all(file.fileno())
        yield
    finally:
        ballast.unlink()


def _take_all(descriptor: int) -> None:
    """Grow a file until no page is free, in pieces, as other processes write meanwhile."""
    size, piece = 0, 1 << 26
    while piece >= PAGE:
        try:
            os.posix_fallocate(descriptor, size, piece)
        except OSError:
            piece //= 2
        else:
            size += piece


@contextmanager
def fill_redis(ground: Ground, for_s: float) -> Iterator[Held]:
    """Fill the disk of Redis' append-only file, until Redis has refused a write."""

    def refuses() -> bool:
        try:
            with ground.redis() as client:
                client.set("drill", "x" * PAGE)
        except redis.ResponseError:
            return True
        return False

    with full(ground.state / "redis"):
        _until_refused(refuses, for_s)
    yield Held(monotonic())


@contextmanager
def fill_postgres(ground: Ground, for_s: float) -> Iterator[Held]:
    """Fill PostgreSQL's disk, and make it need space for its log and for a table."""

    def refuses() -> bool:
        try:
            ground.rows("SELECT pg_switch_wal()")
            return not _postgres_writes(ground)
        except psycopg.Error:
            return True

    with full(ground.state / "postgres"):
        _until_refused(refuses, for_s)
    yield Held(monotonic())


def _until_refused(refuses: Callable[[], bool], for_s: float) -> None:
    """Keep the disk full for `for_s` seconds. Raises AssertionError if no write was refused."""
    ends_at = monotonic() + for_s
    wait_until(refuses, FELT_WITHIN_S, "a full disk refuses a write")
    sleep(max(0.0, ends_at - monotonic()))


@contextmanager
def fill_spool(ground: Ground, for_s: float) -> Iterator[Held]:
    """Leave the data plane no storage for outcomes: neither Redis nor its own disk."""
    redis = ground.tree(ground.pid("redis"))
    with full(ground.state / "dataplane"), ground.frozen(redis):
        sleep(for_s)
    yield Held(monotonic())


# --- restored ------------------------------------------------------------------------------------


@contextmanager
def restore_postgres(ground: Ground, for_s: float) -> Iterator[Held]:
    """Restore a dump that is older than the latest tables, and start an epoch."""
    path = ground.state / "drill.dump"
    dump(ground, path)
    for rollout in ground.control.get("rollouts/")["results"]:
        if rollout["is_live"]:
            ground.control.post(f"rollouts/{rollout['id']}/abort/", {"reason": "drill"})
    wait_until(
        lambda: serves_newest(ground), FELT_WITHIN_S, "a table newer than the dump is served"
    )
    sleep(for_s)
    at = monotonic()
    restore(ground, path)
    start_epoch(ground)
    yield Held(at)


def serves_newest(ground: Ground) -> bool:
    """Return whether the data plane serves the newest table of the database."""
    ready = httpx.get(f"{ground.stack.urls.dataplane}/v2/health/ready", timeout=2).json()
    newest = ground.rows("SELECT max(generation) FROM rollouts_publishedtable")[0][0]
    return bool(ready["generation"] == newest)


# --- back ----------------------------------------------------------------------------------------


def serves(ground: Ground) -> bool:
    """Return whether both workers of the data plane are ready."""
    ready = httpx.get(f"{ground.stack.urls.dataplane}/v2/health/ready", timeout=2)
    return ready.status_code == 200 and len(processes(ground.pid("dataplane"))) == WORKERS


def back_of(part: str) -> IsBack:
    return BACK.get(part, lambda ground: bool(ground.pid(part)))


def _answers(address: Callable[[Ground], str]) -> IsBack:
    def is_back(ground: Ground) -> bool:
        return httpx.get(address(ground), timeout=2).status_code == 200

    return is_back


def _redis_writes(ground: Ground) -> bool:
    with ground.redis() as client:
        return bool(client.set("drill", 1))


def _postgres_writes(ground: Ground) -> bool:
    with psycopg.connect(ground.stack.database_url, connect_timeout=2) as connection:
        # A few megabytes, deleted at the end of the connection.
        connection.execute("CREATE TEMPORARY TABLE drill AS SELECT generate_series(1, 100000)")
    return True


BACK: dict[str, IsBack] = {
    "redis": _redis_writes,
    "postgres": _postgres_writes,
    "web": _answers(lambda ground: f"{ground.stack.urls.web}/healthz/ready"),
    "mlflow": _answers(lambda ground: f"{ground.stack.urls.mlflow}/health"),
    "triton": _answers(lambda ground: f"http://{ground.triton}/v2/health/ready"),
}


def select_faults(names: Sequence[str]) -> list[Fault]:
    """Return the faults whose name contains one of `names`; all faults if there are no names."""
    return [
        fault for fault in all_faults() if not names or any(name in fault.name for name in names)
    ]
