"""Compiling the table is pure: the same snapshot, the same table, and never a dangling name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from apps.rollouts.routing import ModelSnapshot, Snapshot, VersionSnapshot, compile_table
from contract.routing import (
    Batching,
    Breaker,
    Cache,
    CanarySplit,
    Cluster,
    ModelRoute,
    RoutingTable,
    Tenant,
    UnitKey,
    check,
    encode,
)
from tests.rollouts.factories import make_signature

SPLIT = msgspec.to_builtins(
    CanarySplit(id="r", salt="s", version="2", weight_bp=500, interval_s=10)
)


CLUSTERS = {
    "local": Cluster(endpoints=("http://triton:8000",), hedge_after_ms=40),
    "empty": Cluster(endpoints=()),
}


def version(
    number: int, *, ready: bool = True, width: int = 64, warmup: str = ""
) -> VersionSnapshot:
    name, signature = f"digits.{number}", make_signature(width)
    return VersionSnapshot(number, signature, True, "local", name, ready, warmup, 1_700)


def model(*versions: VersionSnapshot, stable: int | None = 1, split: Any = None) -> ModelSnapshot:
    return ModelSnapshot(
        name="digits",
        stable=stable,
        versions=versions,
        split=split or {},
        timeout_ms=250,
        batching=Batching(max_batch_size=8, max_queue_size=64),
        breaker=Breaker(window=50, failures=20, open_ms=2_000),
        unit_key=UnitKey(header="x-customer"),
        cache=Cache(ttl_s=300, shared=True),
    )


def compiled(snapshot: ModelSnapshot) -> RoutingTable:
    table = compile_table(7, Snapshot(models=[snapshot], clusters=CLUSTERS))
    check(table)
    return table


def route(snapshot: ModelSnapshot) -> ModelRoute:
    return compiled(snapshot).models["digits"]


def test_the_same_snapshot_makes_the_same_bytes_in_any_order() -> None:
    one = compiled(model(version(1), version(2), split=SPLIT))
    other = compiled(model(version(2), version(1), split=SPLIT))
    assert encode(one) == encode(other)
    assert set(one.clusters) == {"local"}


def test_a_split_sends_its_share_to_a_ready_version() -> None:
    entry = route(model(version(1), version(2), split=SPLIT))
    assert (entry.stable, entry.timeout_ms, entry.split) == (
        "1",
        250,
        CanarySplit(id="r", salt="s", version="2", weight_bp=500, interval_s=10),
    )


def test_a_version_that_is_not_ready_is_left_out() -> None:
    assert set(route(model(version(1), version(2, ready=False))).versions) == {"1"}


@pytest.mark.parametrize("healing", [1, 2])
def test_what_heals_keeps_its_name_while_it_is_needed(healing: int) -> None:
    versions = [version(n, ready=n != healing) for n in (1, 2)]
    assert set(route(model(*versions, split=SPLIT)).versions) == {"1", "2"}


def test_a_split_whose_version_is_gone_is_dropped_and_stable_serves_on() -> None:
    entry = route(model(version(1), split=SPLIT))
    assert (entry.stable, entry.split) == ("1", None)


def test_a_version_that_takes_other_inputs_is_not_reachable_beside_stable() -> None:
    entry = route(model(version(1), version(2, width=32), split=SPLIT))
    assert set(entry.versions) == {"1"}
    assert entry.split is None


@pytest.mark.parametrize("versions", [[], [version(2, ready=False)]])
def test_a_model_that_nobody_can_answer_for_is_left_out(versions: list[VersionSnapshot]) -> None:
    assert not compiled(model(*versions)).models


def test_a_model_without_stable_is_reachable_by_version_only() -> None:
    entry = route(model(version(1), stable=None))
    assert (entry.stable, set(entry.versions)) == (None, {"1"})


def test_a_models_settings_are_its_routes() -> None:
    entry = route(model(version(1)))
    assert (entry.batching.max_batch_size, entry.batching.max_queue_size) == (8, 64)
    assert entry.breaker == Breaker(window=50, failures=20, open_ms=2_000)
    assert entry.cache == Cache(ttl_s=300, shared=True)
    assert entry.unit_key.header == "x-customer"


def test_a_versions_warm_up_and_age_and_its_clusters_hedging_come_with_the_table() -> None:
    table = compiled(model(version(1, warmup="[[]]")))
    entry = table.models["digits"].versions["1"]
    assert (entry.warmup, entry.created_at_ms) == ("[[]]", 1_700)
    assert table.clusters["local"].hedge_after_ms == 40


def test_a_tenant_without_a_key_is_in_the_table_so_that_its_last_key_is_refused() -> None:
    tenants = {"shop": Tenant(keys=("ab",), requests_per_s=5.0), "new": Tenant(keys=())}
    snapshot = Snapshot(models=[], clusters=CLUSTERS, tenants=tenants, key_required=True)
    table = compile_table(7, snapshot)
    assert (table.tenants, table.key_required) == (tenants, True)
