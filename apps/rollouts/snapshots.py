"""Reads the input of a routing table in a fixed number of queries, for any number of models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from django.db.models import Prefetch, TextField
from django.db.models.functions import Cast
from django.utils.crypto import salted_hmac

from apps.models import models as registry
from apps.models.models import (
    SERVING_SETTINGS,
    ApiKey,
    Deployment,
    RegisteredModel,
    ServingCluster,
    ServingPolicy,
)
from apps.models.repository import name_in_triton
from apps.models.states import DeploymentState
from apps.models.warmup import encode_warmup
from apps.rollouts.routing import ModelSnapshot, Snapshot, VersionSnapshot
from contract.refusals import MetricRule
from contract.routing import Batching, Breaker, Cache, Cluster, Tenant, UnitKey

# Columns instead of model instances: with thousands of models these dominate the time.
MODEL_COLUMNS = (
    "pk",
    "name",
    "stable__number",
    "live_split__document",
    "live_split__shadow",
    *SERVING_SETTINGS,
)
VERSION_COLUMNS = (
    "version__model_id",
    "version__model__name",
    "version__number",
    # As text: versions often have equal signatures, which are parsed once.
    Cast("version__signature", TextField()),
    "version__batched",
    Cast("version__warmup", TextField()),
    "version__created_at",
    "cluster__name",
    "state",
)

# Returns the outcome rule of each metric; the app experiments registers it here.
METRICS: list[Callable[[], dict[str, MetricRule]]] = []


def read_snapshot() -> Snapshot:
    """Return all models, clusters, tenants and keys of the current transaction."""
    placed = _placed_versions()
    models = RegisteredModel.objects.order_by("name").values(*MODEL_COLUMNS)
    policy = ServingPolicy.objects.first()
    tenants = _tenants()
    key_required = policy is not None and policy.key_required
    return Snapshot(
        models=[_model(model, placed.get(model["pk"], [])) for model in models],
        clusters={row.name: _cluster(row) for row in ServingCluster.objects.order_by("name")},
        tenants=tenants,
        key_required=key_required,
        id_secret=_id_secret() if tenants or key_required else "",
        metrics=METRICS[0]() if METRICS else None,
    )


def _id_secret() -> str:
    """Return the secret that signs response ids, derived from SECRET_KEY for all data planes."""
    return salted_hmac("interlock.request-ids", "", algorithm="sha256").hexdigest()


def _placed_versions() -> dict[int, list[VersionSnapshot]]:
    """Return the deployed versions by the primary key of their model."""
    placed: dict[int, list[VersionSnapshot]] = {}
    signatures: dict[str, dict[str, Any]] = {}
    rows = Deployment.objects.exclude(state=DeploymentState.ABSENT).order_by("pk")
    for row in rows.values_list(*VERSION_COLUMNS):
        model_id, name, number, signature, batched, warmup, created_at, cluster, state = row
        if signature not in signatures:
            signatures[signature] = json.loads(signature)
        placed.setdefault(model_id, []).append(
            VersionSnapshot(
                number=number,
                signature=signatures[signature],
                batched=batched,
                cluster=cluster,
                triton_model=name_in_triton(name, number),
                is_ready=state == DeploymentState.READY,
                warmup="" if warmup == "[]" else encode_warmup(json.loads(warmup)),
                created_at_ms=round(created_at.timestamp() * 1_000),
            )
        )
    return placed


def _model(row: Mapping[str, Any], versions: list[VersionSnapshot]) -> ModelSnapshot:
    ttl_s = row["cache_ttl_s"]
    return ModelSnapshot(
        name=row["name"],
        stable=row["stable__number"],
        versions=versions,
        split=row["live_split__document"] or {},
        shadow=row["live_split__shadow"] or {},
        timeout_ms=row["timeout_ms"],
        batching=Batching(
            max_batch_size=row["max_batch_size"],
            max_queue_delay_us=row["max_queue_delay_us"],
            max_queue_size=row["max_queue_size"],
        ),
        breaker=Breaker(
            window=row["breaker_window"],
            failures=row["breaker_failures"],
            open_ms=row["breaker_open_ms"],
        ),
        unit_key=UnitKey(header=row["unit_header"], parameter=row["unit_parameter"]),
        cache=None if ttl_s is None else Cache(ttl_s=ttl_s, shared=row["cache_shared"]),
    )


def _cluster(cluster: ServingCluster) -> Cluster:
    return Cluster(endpoints=tuple(cluster.endpoints), hedge_after_ms=cluster.hedge_after_ms)


def _tenants() -> dict[str, Tenant]:
    active = ApiKey.objects.filter(revoked_at=None).order_by("digest")
    rows = registry.Tenant.objects.prefetch_related(Prefetch("keys", active))
    return {
        row.name: Tenant(
            keys=tuple(key.digest for key in row.keys.all() if not key.opens),
            limited_keys={key.digest: tuple(key.opens) for key in row.keys.all() if key.opens},
            requests_per_s=row.requests_per_s,
            burst=row.burst,
            concurrency_max=row.concurrency_max,
            priority=row.priority,  # type: ignore[arg-type]
        )
        for row in rows
    }
