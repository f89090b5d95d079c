"""Refused outcomes are shown by metric, reason and sender; routing tables hold the metrics."""

from __future__ import annotations

import pytest
from django.test import Client
from rest_framework.test import APIClient

from apps.experiments.ingestion import apply_outcomes, record_outcomes
from apps.experiments.metrics import create_metric, delete_metric
from apps.experiments.models import Metric, RefusedOutcomes
from apps.experiments.refusals import Origin
from apps.models.models import Role
from apps.rollouts.publication import latest_table
from apps.rollouts.table_sync import publish_drift
from contract.refusals import MALFORMED, NO_PROPORTION, UNKNOWN_METRIC, MetricRule, OutcomeRefusals
from contract.routing import RoutingTable, decode
from tests.experiments.factories import ANNA, NOW, batch, make_metric, outcome
from tests.experiments.test_api import client_of

pytestmark = pytest.mark.django_db

ROOT = "/api/v1/outcomes/"


def counted() -> list[tuple[str, str, str, str, int]]:
    rows = RefusedOutcomes.objects.order_by("metric_name", "reason", "sender", "via")
    return list(rows.values_list("metric_name", "reason", "sender", "via", "count"))


def published() -> RoutingTable:
    table = latest_table()
    assert table is not None
    return decode(bytes(table.document))


def test_routing_tables_hold_the_metrics() -> None:
    paid = create_metric(name="paid", kind="proportion", actor=ANNA)
    create_metric(name="paid-once", kind="proportion", outcomes_of=paid, actor=ANNA)
    create_metric(name="slow", kind="mean", source="latency", actor=ANNA)
    amount = create_metric(name="amount", kind="mean", actor=ANNA)

    rules = published().metrics
    assert rules is not None
    assert rules["paid"] == MetricRule(is_binary=True)
    assert rules["amount"] == MetricRule()
    assert "send them under that name" in rules["paid-once"].refusal
    assert "measures latency itself" in rules["slow"].refusal

    delete_metric(metric=amount, actor=ANNA)
    assert "amount" not in (published().metrics or {})


def test_a_metric_created_without_the_service_is_published_too() -> None:
    publish_drift()
    make_metric("accuracy")
    assert publish_drift()
    assert published().metrics == {"accuracy": MetricRule(is_binary=True)}


def test_both_planes_give_the_same_reason() -> None:
    make_metric("accuracy")
    report = record_outcomes([outcome("a", value=0.5)], NOW)
    assert (
        report.refused[0].reason == MetricRule(is_binary=True).refusal_reason(0.5) == NO_PROPORTION
    )


def test_refusals_of_data_planes_are_counted_by_tenant_and_instance() -> None:
    make_metric("accuracy")
    refusals = (
        OutcomeRefusals(metric="acuracy", reason=UNKNOWN_METRIC, count=3, tenant="shop"),
        OutcomeRefusals(metric="accuracy", reason=NO_PROPORTION, count=1),
        OutcomeRefusals(metric="x\x00" * 200, reason="r" * 500, count=-5),
    )
    sent = batch(refusals=refusals, outcomes=(outcome("a", metric="gone"),))
    apply_outcomes([sent, sent], NOW)

    assert counted() == [
        ("accuracy", NO_PROPORTION, "", "proxy-1", 2),
        ("acuracy", UNKNOWN_METRIC, "shop", "proxy-1", 6),
        ("gone", UNKNOWN_METRIC, "", "proxy-1", 2),
        ("x" * 100, "r" * 200, "", "proxy-1", 0),
    ]


def test_the_api_counts_its_refusals_and_lists_all() -> None:
    make_metric("accuracy")
    operator = client_of(Role.OPERATOR)
    good = {"event_id": "a", "unit_id": "u", "metric": "accuracy", "value": 1}
    rows = [good, {**good, "metric": "acuracy"}, {**good, "colour": "red"}, {**good, "value": "1"}]
    answer = operator.post(ROOT, {"outcomes": rows}, format="json")
    assert [each["index"] for each in answer.json()["refused"]] == [1, 2, 3]

    sender = "a-operator"
    assert counted() == [
        ("accuracy", MALFORMED, sender, "REST API", 2),
        ("acuracy", UNKNOWN_METRIC, sender, "REST API", 1),
    ]
    shown = operator.get(f"{ROOT}refused/").json()["results"]
    assert {each["metric_name"] for each in shown} == {"accuracy", "acuracy"}
    (only,) = operator.get(f"{ROOT}refused/", {"metric": "acuracy"}).json()["results"]
    assert (only["reason"], only["sender"], only["count"]) == (UNKNOWN_METRIC, sender, 1)


def test_pages_show_them_by_name_reason_and_sender(admin_client: Client) -> None:
    make_metric("accuracy", Metric.Kind.PROPORTION)
    origins = [Origin("shop", "dp-7"), Origin("", "dp-8")]
    sent = [outcome("a", metric="acuracy"), outcome("b", value=7.0)]
    record_outcomes(sent, NOW, origins)

    everything = admin_client.get("/experiments/metrics/").content.decode()
    for text in ("acuracy", UNKNOWN_METRIC, "shop", "dp-7", NO_PROPORTION, "dp-8"):
        assert text in everything
    page = admin_client.get("/experiments/metrics/accuracy/").content.decode()
    assert NO_PROPORTION in page
    assert "dp-8" in page
    assert "dp-7" not in page


def test_prometheus_reads_the_counts() -> None:
    record_outcomes([outcome("a", metric="acuracy")], NOW, Origin("shop", "dp-7"))
    record_outcomes([outcome("b", metric="acuracy")], NOW, Origin("", "dp-8"))
    client: APIClient = client_of(Role.VIEWER)
    page = client.get("/metrics").content.decode()
    assert 'interlock_outcomes_refused_total{metric="acuracy",reason="unknown metric"} 2.0' in page
