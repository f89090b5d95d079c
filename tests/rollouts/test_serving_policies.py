"""Serving settings and warm-up requests: what is changed is in the next table, or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.lib.errors import Invalid
from apps.models.models import AuditEntry, ModelVersion, RegisteredModel, ServingCluster
from apps.rollouts.serving_policies import change_settings, change_warmup
from apps.rollouts.tasks import publish_drift
from contract.routing import Batching, Breaker, Cache, ModelRoute
from tests.models.test_warmup import fitting
from tests.rollouts.factories import ANNA, latest, make_model

pytestmark = pytest.mark.django_db


def change(model: RegisteredModel, **settings: Any) -> ModelRoute:
    change_settings(model=model, actor=ANNA, now=database_now(), **settings)
    return latest().models[model.name]


def test_defaults_are_the_contracts() -> None:
    entry = change(make_model(), timeout_ms=999)
    assert (entry.batching, entry.breaker, entry.cache) == (Batching(), Breaker(), None)


@pytest.mark.parametrize(
    ("settings", "compiled"),
    [
        ({"timeout_ms": 250}, {"timeout_ms": 250}),
        ({"max_queue_size": 64}, {"batching": Batching(max_queue_size=64)}),
        ({"max_batch_size": 8}, {"batching": Batching(max_batch_size=8)}),
        ({"max_queue_delay_us": 0}, {"batching": Batching(max_queue_delay_us=0)}),
        ({"breaker_window": 50}, {"breaker": Breaker(window=50)}),
        ({"breaker_failures": 5}, {"breaker": Breaker(failures=5)}),
        ({"breaker_open_ms": 900}, {"breaker": Breaker(open_ms=900)}),
        ({"cache_ttl_s": 300}, {"cache": Cache(ttl_s=300)}),
        (
            {"cache_ttl_s": 300, "cache_shared": True},
            {"cache": Cache(ttl_s=300, shared=True)},
        ),
    ],
)
def test_each_setting_takes_effect(settings: dict[str, Any], compiled: dict[str, Any]) -> None:
    entry = change(make_model(), **settings)
    assert {name: getattr(entry, name) for name in compiled} == compiled


def test_the_unit_is_looked_for_where_the_model_says() -> None:
    entry = change(make_model(), unit_header="x-customer", unit_parameter="customer")
    assert (entry.unit_key.header, entry.unit_key.parameter) == ("x-customer", "customer")


def test_the_cache_is_switched_off_again() -> None:
    model = make_model()
    change(model, cache_ttl_s=300, cache_shared=True)
    assert change(model, cache_ttl_s=None, cache_shared=False).cache is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"max_queue_size": 0}, "max_queue_size"),
        ({"max_queue_size": 31}, "less than max_batch_size"),
        ({"max_batch_size": 1_025}, "less than max_batch_size"),
        ({"breaker_failures": 21}, "the breaker would never open"),
        ({"breaker_open_ms": 1}, "breaker_open_ms"),
        ({"cache_ttl_s": 0}, "cache_ttl_s"),
        ({"cache_shared": True}, "without it nothing is cached"),
        ({"unit_header": "x unit"}, "unit_header"),
        ({"unit_parameter": ""}, "unit_parameter"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    settings: dict[str, Any], message: str
) -> None:
    model = make_model()
    with pytest.raises(Invalid, match=message):
        change(model, **settings)
    name = next(iter(settings))
    assert getattr(RegisteredModel.objects.get(), name) == getattr(model, name)


def test_a_change_is_audited_and_the_same_again_is_none() -> None:
    model = make_model()
    change(model, timeout_ms=250, max_batch_size=32)
    change(model, timeout_ms=250)
    entry = AuditEntry.objects.get(action="model.changed")
    assert (entry.before, entry.after) == ({"timeout_ms": 1_000}, {"timeout_ms": 250})


def test_hedging_is_a_clusters() -> None:
    make_model()
    ServingCluster.objects.update(hedge_after_ms=40)
    publish_drift()
    assert latest().clusters["local"].hedge_after_ms == 40


def warm(version: ModelVersion, requests: Any) -> None:
    change_warmup(version=version, requests=requests, actor=ANNA, now=database_now())


def test_warm_up_requests_come_with_the_table_as_json() -> None:
    version = make_model().versions.get(number=2)
    warm(version, [fitting(), fitting()])
    routes = latest().models["digits"].versions
    assert json.loads(routes["2"].warmup) == [fitting(), fitting()]
    assert routes["1"].warmup == ""
    assert routes["2"].created_at_ms == round(version.created_at.timestamp() * 1_000)


def test_warm_up_requests_are_taken_away_again() -> None:
    version = make_model().versions.get(number=2)
    warm(version, [fitting()])
    warm(version, [])
    assert latest().models["digits"].versions["2"].warmup == ""


def test_warm_up_requests_that_do_not_fit_change_nothing() -> None:
    version = make_model().versions.get(number=2)
    with pytest.raises(Invalid, match="datatype"):
        warm(version, [[{**fitting()[0], "datatype": "INT8"}]])
    version.refresh_from_db()
    assert version.warmup == []
