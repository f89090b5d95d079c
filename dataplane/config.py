"""Every setting of the data plane, declared here and read once from the environment.

This is the only module here that reads `os.environ`. Documents and docker-compose.yml get the
settings from these declarations (`embedded.settings_pages`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from contract.variables import Variable
from dataplane import environment
from dataplane.environment import ConfigError, required, setting

__all__ = ["Config", "ConfigError", "Group", "Limits", "StalePolicy", "Transport", "load"]

MIB = 1024 * 1024
StalePolicy = Literal["serve", "warn", "fail"]


def default_workers() -> int:
    """Return half of the cores: a model server on the same machine needs the other half."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one HTTP connection."""

    head_bytes_max: int = setting(
        32 * 1024, "bytes", "largest request line and headers; beyond it 431"
    )
    headers_max: int = setting(100, "headers", "most headers of a request; beyond it 431")
    body_bytes_max: int = setting(
        16 * MIB, "bytes", "largest body, as sent and unpacked; beyond it 413"
    )
    connection_bytes_max: int = setting(
        4 * MIB, "bytes",
        "unanswered large bodies of one connection; beyond it the connection is not read",
    )  # fmt: skip
    bodies_bytes_max: int = setting(
        64 * MIB, "bytes", "the same of all connections of one process; beyond it 503"
    )
    head_timeout_s: int = setting(10, "s", "a request head must be complete within it; else 408")
    body_timeout_s: int = setting(30, "s", "a request must be complete within it; else 408")
    idle_timeout_s: int = setting(75, "s", "an idle connection is closed after it")
    write_timeout_s: int = setting(
        30, "s", "a client that does not read its answers for so long is cut off"
    )
    pipeline_max: int = setting(
        32,
        "requests",
        "unanswered of one connection; beyond it the connection is not read",
    )
    compress_bytes_min: int = setting(
        4_096, "bytes", "answers from this size on are compressed for clients that accept it"
    )


@dataclass(frozen=True, kw_only=True)
class Transport:
    """How calls to Triton are spread over endpoints, repeated, and kept away from bad ones."""

    warm_connections: int = setting(
        2, "connections", "opened to an endpoint before a table that newly names it is applied"
    )
    warmup_timeout_s: float = setting(5.0, "s", "each warm-up request must be answered within it")
    retry_budget_bp: int = setting(
        1_000, "1/10,000",
        "share of a cluster's calls of the last 10 s that may be sent a second time (retries and "
        "hedges)",
    )  # fmt: skip
    retry_floor: int = setting(
        10,
        "calls",
        "that may be sent a second time in 10 s beyond that share",
    )
    eject_failures: int = setting(
        5, "calls", "without an answer, one after the other, eject an endpoint"
    )
    eject_gap_bp: int = setting(
        3_000, "1/10,000",
        "an endpoint is ejected when its share of failures exceeds that of its siblings by this",
    )  # fmt: skip
    eject_s: float = setting(
        5.0, "s", "length of the first ejection; each further one is twice as long, ± 20 %"
    )
    eject_max_s: float = setting(60.0, "s", "longest ejection, ± 20 %")
    connection_idle_s: float = setting(
        60.0, "s", "a connection to Triton that was idle for longer is closed"
    )
    connection_age_s: float = setting(
        300.0, "s",
        "a connection to Triton is used no longer, −20 % at random; its call ends first",
    )  # fmt: skip
    resolve_s: float = setting(
        5.0, "s",
        "how often the name of an endpoint in use is resolved; connections to addresses that it no "
        "longer has are retired",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Group:
    """How the processes of an instance run, and what its operator may do."""

    workers: int = setting(
        default_workers, "processes",
        "that answer requests; a model server on the machine keeps the other cores",
        parse=environment.positive(int), shown="half of the cores, at least 1",
    )  # fmt: skip
    lame_duck_s: float = setting(
        0.5, "s",
        "a stopping instance accepts requests for this long while its readiness fails; longer than "
        "a load balancer takes to notice",
    )  # fmt: skip
    staleness: StalePolicy = setting(
        "serve", "",
        "what happens when the control plane has not confirmed the table for "
        "INTERLOCK_STALE_AFTER_S: serve it, warn as well, or fail readiness (serve, warn, fail)",
        parse=environment.one_of(*get_args(StalePolicy)),
    )  # fmt: skip
    stale_after_s: float = setting(60.0, "s", "a table that was not confirmed for longer is stale")
    operator_token: str = setting(
        "", "",
        "lets its bearer read metrics, statistics and configurations, and pin models to stable; "
        "without it these are closed",
        parse=str, shown="none", is_secret=True,
    )  # fmt: skip
    # Its clients wait meanwhile.
    worker_silent_s: float = setting(
        1.5, "s",
        "a worker that shows no sign of life for longer, though it had a core, is killed and "
        "started again",
    )  # fmt: skip
    # Time in which others kept it from the cores does not count.
    worker_start_s: float = setting(
        120.0,
        "s",
        "the same for a worker that is not ready; waiting for a core does not count",
    )
    orphan_s: float = setting(
        60.0, "s", "workers whose parent was killed serve for this long without another parent"
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of one instance."""

    bind: tuple[str, int] = required(
        "the address that it listens on", environment.bind, unit="host:port"
    )
    control_url: str = required("the control plane", environment.web_url, unit="URL")
    instance_token: str = required(
        "identifies the instance to the control plane and signs its messages",
        str, is_secret=True,
    )  # fmt: skip
    instance_name: str = required("its name on the fleet page and in its messages", str)
    state_dir: Path = required(
        "the last good table and the spool; one directory for each instance",
        environment.path, unit="path",
    )  # fmt: skip
    redis_url: str = required(
        "Redis: wake-ups, telemetry, exposures, outcomes and the shared cache",
        environment.redis_url, unit="URL", name="REDIS_URL", is_secret=True,
    )  # fmt: skip
    poll_interval_s: float = setting(2.0, "s", "longest time between two pulls of the table")
    report_interval_s: float = setting(
        2.0,
        "s",
        "longest time between two reports; a change is reported at once",
    )
    telemetry_interval_s: float = setting(1.0, "s", "length of a telemetry window")
    stop_timeout_s: float = setting(10.0, "s", "longest graceful stop")
    connections_max: int = setting(
        4_096, "connections", "from clients; further ones are closed as they come"
    )
    endpoint_connections_max: int = setting(64, "connections", "to one Triton endpoint")
    batches_in_flight_max: int = setting(4, "batches", "of one version under way at once")
    triton_instances: int = setting(
        1, "instances",
        "batches of one version that an endpoint computes at once; the same as the control plane's",
    )  # fmt: skip
    shadow_connections_max: int = setting(
        2, "connections",
        "to one Triton endpoint for shadow requests, and batches of one shadow under way at once",
    )  # fmt: skip
    shadow_in_flight_max: int = setting(
        64, "requests",
        "to shadows that may wait, be under way or be compared; further ones are dropped",
    )  # fmt: skip
    shadow_bytes_max: int = setting(64 * MIB, "bytes", "memory that those shadow requests may take")
    spool_bytes_max: int = setting(64 * MIB, "bytes", "that may wait on disk while Redis is away")
    stream_bytes_max: int = setting(
        256 * MIB, "bytes",
        "of Redis' memory for each stream; beyond it the oldest telemetry and exposures are lost, "
        "and outcomes wait in the spool",
    )  # fmt: skip
    cache_entries_max: int = setting(
        50_000,
        "answers",
        "that one process caches, of all models; the least recently used leaves first",
    )
    cache_bytes_max: int = setting(
        32 * MIB, "bytes",
        "that those answers may take; half as much again holds requests that were parsed before",
    )  # fmt: skip
    cache_timeout_ms: int = setting(
        20, "ms", "a look-up in Redis that takes longer is a cache miss"
    )
    grpc_bind: tuple[str, int] | None = setting(
        None, "host:port", "the address that it serves gRPC on; needs the package grpcio",
        parse=environment.grpc_bind, shown="none: off",
    )  # fmt: skip
    limits: Limits = Limits()
    transport: Transport = Transport()
    group: Group = Group()

    @property
    def host(self) -> str:
        return self.bind[0]

    @property
    def port(self) -> int:
        return self.bind[1]


def load_own() -> Config:
    return load(os.environ)


def load(environ: Mapping[str, str]) -> Config:
    """Return the settings in `environ`. Raises ConfigError."""
    return environment.read(
        Config,
        environ,
        limits=environment.read(Limits, environ),
        group=environment.read(Group, environ),
        transport=environment.read(Transport, environ),
    )


def variables() -> list[Variable]:
    """Return the declarations of all settings, for documents."""
    kinds = (Config, Group, Limits, Transport)
    return [variable for kind in kinds for variable in environment.variables(kind)]


def keep_grpc_over_forks() -> None:
    """Set the variable that gRPC reads when it is imported.

    Otherwise gRPC closes its connections when this process forks, as it does to start the process
    that reads large bodies.
    """
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
