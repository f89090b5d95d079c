"""All settings of the data plane, read once from the environment.

This is the only module of the data plane that reads `os.environ`. An invalid value stops the start
with an error that names the variable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeVar, cast, get_args

from contract.redis_url import RedisUrlError, parse_redis_url

T = TypeVar("T")
StalePolicy = Literal["serve", "warn", "fail"]


class ConfigError(ValueError):
    """A setting that is missing or invalid; the message names the variable."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one HTTP connection; sizes in bytes, times in whole seconds."""

    head_bytes_max: int = 32 * 1024
    headers_max: int = 100
    body_bytes_max: int = 16 * 1024 * 1024
    # Bytes of unanswered requests: of one connection, before it is no longer read, and of the
    # process.
    connection_bytes_max: int = 4 * 1024 * 1024
    bodies_bytes_max: int = 64 * 1024 * 1024
    head_timeout_s: int = 10
    body_timeout_s: int = 30
    idle_timeout_s: int = 75
    write_timeout_s: int = 30
    pipeline_max: int = 32
    compress_bytes_min: int = 4_096


@dataclass(frozen=True, kw_only=True)
class Transport:
    """How calls to Triton are balanced over endpoints, retried, and kept from bad endpoints.

    Shares are in basis points of 10,000. `retry_floor` is per ten seconds; see `triton.budget`.
    """

    warm_connections: int = 2
    warmup_timeout_s: float = 5.0
    retry_budget_bp: int = 1_000
    retry_floor: int = 10
    eject_failures: int = 5
    eject_gap_bp: int = 3_000
    eject_s: float = 5.0
    eject_max_s: float = 60.0
    connection_idle_s: float = 60.0
    connection_age_s: float = 300.0
    resolve_s: float = 5.0


@dataclass(frozen=True, kw_only=True)
class Group:
    """How the processes of an instance run, and what its operator may do."""

    workers: int = 1
    lame_duck_s: float = 0.5
    staleness: StalePolicy = "serve"
    stale_after_s: float = 60.0
    operator_token: str = ""
    # A worker that could run but gives no sign of life for this long is killed and restarted; its
    # clients wait until then.
    worker_silent_s: float = 1.5
    # The same limit for a worker that starts. Time in which it waited for a core does not count.
    worker_start_s: float = 120.0
    # Workers whose parent was killed serve this long without a new parent.
    orphan_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of one instance."""

    host: str
    port: int
    control_url: str
    instance_token: str
    instance_name: str
    state_dir: Path
    redis_url: str
    poll_interval_s: float = 2.0
    report_interval_s: float = 2.0
    telemetry_interval_s: float = 1.0
    stop_timeout_s: float = 10.0
    connections_max: int = 4_096
    endpoint_connections_max: int = 64
    batches_in_flight_max: int = 4
    triton_instances: int = 1
    shadow_connections_max: int = 2
    shadow_in_flight_max: int = 64
    shadow_bytes_max: int = 64 * 1024 * 1024
    spool_bytes_max: int = 64 * 1024 * 1024
    stream_bytes_max: int = 256 * 1024 * 1024
    cache_entries_max: int = 50_000
    cache_bytes_max: int = 32 * 1024 * 1024
    cache_timeout_ms: int = 20
    limits: Limits = Limits()
    transport: Transport = Transport()
    group: Group = Group()
    # None if gRPC is not served.
    grpc_bind: tuple[str, int] | None = None


def load_own() -> Config:
    return load(os.environ)


def load(environ: Mapping[str, str]) -> Config:
    """Read the settings from `environ`. Raises ConfigError."""
    host, port = _bind("INTERLOCK_BIND", _required(environ, "INTERLOCK_BIND"))
    return Config(
        host=host,
        port=port,
        control_url=_url(environ, "INTERLOCK_CONTROL_URL", ("http://", "https://")),
        instance_token=_required(environ, "INTERLOCK_INSTANCE_TOKEN"),
        instance_name=_required(environ, "INTERLOCK_INSTANCE_NAME"),
        state_dir=Path(_required(environ, "INTERLOCK_STATE_DIR")),
        redis_url=_redis_url(environ, "REDIS_URL"),
        poll_interval_s=_positive(environ, "INTERLOCK_POLL_INTERVAL_S", float, 2.0),
        report_interval_s=_positive(environ, "INTERLOCK_REPORT_INTERVAL_S", float, 2.0),
        telemetry_interval_s=_positive(environ, "INTERLOCK_TELEMETRY_INTERVAL_S", float, 1.0),
        stop_timeout_s=_positive(environ, "INTERLOCK_STOP_TIMEOUT_S", float, 10.0),
        connections_max=_positive(environ, "INTERLOCK_CONNECTIONS_MAX", int, 4_096),
        endpoint_connections_max=_positive(environ, "INTERLOCK_ENDPOINT_CONNECTIONS_MAX", int, 64),
        batches_in_flight_max=_positive(environ, "INTERLOCK_BATCHES_IN_FLIGHT_MAX", int, 4),
        triton_instances=_positive(environ, "INTERLOCK_TRITON_INSTANCES", int, 1),
        shadow_connections_max=_positive(environ, "INTERLOCK_SHADOW_CONNECTIONS_MAX", int, 2),
        shadow_in_flight_max=_positive(environ, "INTERLOCK_SHADOW_IN_FLIGHT_MAX", int, 64),
        shadow_bytes_max=_positive(environ, "INTERLOCK_SHADOW_BYTES_MAX", int, 64 * 1024 * 1024),
        spool_bytes_max=_positive(environ, "INTERLOCK_SPOOL_BYTES_MAX", int, 64 * 1024 * 1024),
        stream_bytes_max=_positive(environ, "INTERLOCK_STREAM_BYTES_MAX", int, 256 * 1024 * 1024),
        cache_entries_max=_positive(environ, "INTERLOCK_CACHE_ENTRIES_MAX", int, 50_000),
        cache_bytes_max=_positive(environ, "INTERLOCK_CACHE_BYTES_MAX", int, 32 * 1024 * 1024),
        cache_timeout_ms=_positive(environ, "INTERLOCK_CACHE_TIMEOUT_MS", int, 20),
        limits=_limits(environ),
        group=_group(environ),
        grpc_bind=_grpc_bind(environ),
        transport=_transport(environ),
    )


def _group(environ: Mapping[str, str]) -> Group:
    default = Group()
    staleness = environ.get("INTERLOCK_STALENESS", "").strip() or default.staleness
    if staleness not in get_args(StalePolicy):
        raise ConfigError(
            f"INTERLOCK_STALENESS must be one of serve, warn, fail, not {staleness!r}"
        )
    return Group(
        workers=_positive(environ, "INTERLOCK_WORKERS", int, default_workers()),
        lame_duck_s=_positive(environ, "INTERLOCK_LAME_DUCK_S", float, default.lame_duck_s),
        staleness=cast(StalePolicy, staleness),
        stale_after_s=_positive(environ, "INTERLOCK_STALE_AFTER_S", float, default.stale_after_s),
        operator_token=environ.get("INTERLOCK_OPERATOR_TOKEN", "").strip(),
        worker_silent_s=_positive(
            environ, "INTERLOCK_WORKER_SILENT_S", float, default.worker_silent_s
        ),
        worker_start_s=_positive(
            environ, "INTERLOCK_WORKER_START_S", float, default.worker_start_s
        ),
        orphan_s=_positive(environ, "INTERLOCK_ORPHAN_S", float, default.orphan_s),
    )


def default_workers() -> int:
    """Return half of the cores: a model server on the same machine needs the other half."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


def _limits(environ: Mapping[str, str]) -> Limits:
    default = Limits()

    def whole(name: str, value: int) -> int:
        return _positive(environ, name, int, value)

    return Limits(
        head_bytes_max=whole("INTERLOCK_HEAD_BYTES_MAX", default.head_bytes_max),
        headers_max=whole("INTERLOCK_HEADERS_MAX", default.headers_max),
        body_bytes_max=whole("INTERLOCK_BODY_BYTES_MAX", default.body_bytes_max),
        connection_bytes_max=whole("INTERLOCK_CONNECTION_BYTES_MAX", default.connection_bytes_max),
        bodies_bytes_max=whole("INTERLOCK_BODIES_BYTES_MAX", default.bodies_bytes_max),
        head_timeout_s=whole("INTERLOCK_HEAD_TIMEOUT_S", default.head_timeout_s),
        body_timeout_s=whole("INTERLOCK_BODY_TIMEOUT_S", default.body_timeout_s),
        idle_timeout_s=whole("INTERLOCK_IDLE_TIMEOUT_S", default.idle_timeout_s),
        write_timeout_s=whole("INTERLOCK_WRITE_TIMEOUT_S", default.write_timeout_s),
        pipeline_max=whole("INTERLOCK_PIPELINE_MAX", default.pipeline_max),
        compress_bytes_min=whole("INTERLOCK_COMPRESS_BYTES_MIN", default.compress_bytes_min),
    )


def _transport(environ: Mapping[str, str]) -> Transport:
    default = Transport()

    def whole(name: str, value: int) -> int:
        return _positive(environ, name, int, value)

    def seconds(name: str, value: float) -> float:
        return _positive(environ, name, float, value)

    return Transport(
        warm_connections=whole("INTERLOCK_WARM_CONNECTIONS", default.warm_connections),
        warmup_timeout_s=seconds("INTERLOCK_WARMUP_TIMEOUT_S", default.warmup_timeout_s),
        retry_budget_bp=whole("INTERLOCK_RETRY_BUDGET_BP", default.retry_budget_bp),
        retry_floor=whole("INTERLOCK_RETRY_FLOOR", default.retry_floor),
        eject_failures=whole("INTERLOCK_EJECT_FAILURES", default.eject_failures),
        eject_gap_bp=whole("INTERLOCK_EJECT_GAP_BP", default.eject_gap_bp),
        eject_s=seconds("INTERLOCK_EJECT_S", default.eject_s),
        eject_max_s=seconds("INTERLOCK_EJECT_MAX_S", default.eject_max_s),
        connection_idle_s=seconds("INTERLOCK_CONNECTION_IDLE_S", default.connection_idle_s),
        connection_age_s=seconds("INTERLOCK_CONNECTION_AGE_S", default.connection_age_s),
        resolve_s=seconds("INTERLOCK_RESOLVE_S", default.resolve_s),
    )


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise ConfigError(f"{name} is not set")
    return value


def _url(environ: Mapping[str, str], name: str, schemes: tuple[str, ...]) -> str:
    value = _required(environ, name)
    if not value.startswith(schemes):
        raise ConfigError(f"{name} must begin with one of {', '.join(schemes)}: {value!r}")
    return value.rstrip("/")


def _redis_url(environ: Mapping[str, str], name: str) -> str:
    value = _required(environ, name)
    try:
        parse_redis_url(value)
    except RedisUrlError as error:
        # The value is not shown: it may contain a password.
        raise ConfigError(f"{name} {error}") from None
    return value.rstrip("/")


def _grpc_bind(environ: Mapping[str, str]) -> tuple[str, int] | None:
    value = environ.get("INTERLOCK_GRPC_BIND", "").strip()
    if not value:
        return None
    if find_spec("grpc") is None:
        raise ConfigError("INTERLOCK_GRPC_BIND needs the package grpcio, which is not installed")
    return _bind("INTERLOCK_GRPC_BIND", value)


def _bind(name: str, value: str) -> tuple[str, int]:
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"{name} must be host:port, not {value!r}")
    return host.strip("[]"), int(port)


def _positive(environ: Mapping[str, str], name: str, kind: Callable[[str], T], default: T) -> T:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = kind(text)
    except ValueError:
        raise ConfigError(f"{name} must be a number, not {text!r}") from None
    if not 0 < value < float("inf"):  # type: ignore[operator]
        raise ConfigError(f"{name} must be greater than 0, not {text!r}")
    return value


def keep_grpc_over_forks() -> None:
    """Set the variable that gRPC reads when it is imported.

    Otherwise gRPC closes its connections when this process forks, as it does to start the process
    that reads large bodies.
    """
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
