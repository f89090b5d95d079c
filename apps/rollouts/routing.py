"""Compiles the routing table: a pure function from a database snapshot to the contract.

The same snapshot gives the same table. A version is in the table when it is ready, and also while
it recovers if it is stable or in a split: a failing version must stay in the table, as the data
plane may fall back to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from contract.refusals import MetricRule
from contract.routing import (
    Batching,
    Breaker,
    Cache,
    CanarySplit,
    Cluster,
    ExperimentSplit,
    ModelRoute,
    RoutingTable,
    Shadow,
    Signature,
    Tenant,
    UnitKey,
    VersionRoute,
)

Split = CanarySplit | ExperimentSplit


@dataclass(frozen=True)
class VersionSnapshot:
    number: int
    signature: dict[str, Any]
    batched: bool
    cluster: str
    triton_model: str
    is_ready: bool
    # The warm-up requests as JSON, or empty.
    warmup: str = ""
    created_at_ms: int = 0


@dataclass(frozen=True)
class ModelSnapshot:
    name: str
    stable: int | None
    versions: Sequence[VersionSnapshot]
    split: dict[str, Any]
    timeout_ms: int
    batching: Batching
    breaker: Breaker
    unit_key: UnitKey
    cache: Cache | None = None
    shadow: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """The input of a table."""

    models: Iterable[ModelSnapshot]
    clusters: Mapping[str, Cluster]
    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    key_required: bool = False
    id_secret: str = ""
    metrics: Mapping[str, MetricRule] | None = None


def compile_table(generation: int, snapshot: Snapshot) -> RoutingTable:
    """Return the table of `snapshot` with the number `generation`.

    Unreachable entries are left out: models without a deployed version, clusters without
    endpoints. A tenant without an API key stays: while there is any tenant, data planes refuse
    unknown keys, and so also the last key after it is revoked.
    """
    routes = {model.name: _route(model) for model in snapshot.models if model.versions}
    return RoutingTable(
        generation=generation,
        models={name: route for name, route in routes.items() if route is not None},
        clusters={
            name: cluster for name, cluster in snapshot.clusters.items() if cluster.endpoints
        },
        tenants=dict(snapshot.tenants),
        key_required=snapshot.key_required,
        id_secret=snapshot.id_secret,
        metrics=None if snapshot.metrics is None else dict(snapshot.metrics),
    )


def _route(model: ModelSnapshot) -> ModelRoute | None:
    split = msgspec.convert(model.split, Split) if model.split else None
    needed = _numbers_of(split) | ({str(model.stable)} if model.stable is not None else set())
    served = [v for v in model.versions if v.is_ready or str(v.number) in needed]
    if not served:
        return None
    by_number = {str(version.number): version for version in served}
    shape = by_number.get(str(model.stable)) or max(served, key=lambda v: v.number)
    # A route has one signature: versions with another one cannot be in it.
    fitting = {n: v for n, v in by_number.items() if v.signature == shape.signature}
    if str(model.stable) not in fitting or not _numbers_of(split) <= fitting.keys():
        # The inconsistent state of one model must not block the table of all models.
        split = None
    shadow = msgspec.convert(model.shadow, Shadow) if model.shadow and split else None
    return ModelRoute(
        signature=msgspec.convert(shape.signature, Signature),
        stable=str(model.stable) if str(model.stable) in fitting else None,
        versions={
            number: VersionRoute(
                cluster=version.cluster,
                triton_model=version.triton_model,
                triton_version=number,
                warmup=version.warmup,
                created_at_ms=version.created_at_ms,
            )
            for number, version in sorted(fitting.items())
        },
        split=split,
        batched=shape.batched,
        batching=model.batching,
        breaker=model.breaker,
        unit_key=model.unit_key,
        timeout_ms=model.timeout_ms,
        cache=model.cache,
        shadow=shadow,
    )


def _numbers_of(split: Split | None) -> set[str]:
    if isinstance(split, CanarySplit):
        return {split.version}
    if isinstance(split, ExperimentSplit):
        return {variant.version for variant in split.variants}
    return set()
