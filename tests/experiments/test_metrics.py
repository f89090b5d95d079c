"""Metrics: fields of each kind, invalid combinations, and deletion."""

from __future__ import annotations

from typing import Any

import pytest

from apps.experiments.metrics import (
    create_metric,
    delete_metric,
    edit_metric,
    outcome_refusal_reason,
)
from apps.experiments.models import Metric
from apps.lib.errors import Conflict, Invalid
from apps.models.models import AuditEntry
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from tests.experiments.factories import ANNA, make_draft, make_metric, observe

pytestmark = pytest.mark.django_db


def create(kind: str = "mean", name: str = "made", **fields: Any) -> Metric:
    return create_metric(name=name, kind=kind, actor=ANNA, **fields)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("median", {}, "kind: unknown kind 'median'"),
        ("mean", {"source": "clicks"}, "source: unknown source 'clicks'"),
        ("mean", {"direction": "up"}, "direction"),
        ("ratio", {}, "divided_by: a ratio of outcomes needs"),
        ("mean", {"divided_by": "visits"}, "only a ratio has a denominator"),
        ("ratio", {"divided_by": "visits", "per_unit": "max"}, "a ratio always sums"),
        ("proportion", {"per_unit": "sum"}, "a proportion takes first or max"),
        ("mean", {"per_unit": "last"}, "unknown value 'last'"),
        ("proportion", {"outcomes_of": "visits"}, "are amounts"),
        ("mean", {"outcomes_of": "borrowed"}, "uses the outcomes of visits"),
        ("ratio", {"divided_by": "borrowed"}, "uses the outcomes of visits"),
        ("mean", {"outcomes_of": "measured"}, "the data plane measures it"),
        (
            "mean",
            {"source": "latency", "outcomes_of": "visits"},
            "outcomes_of: the data plane measures latency",
        ),
        (
            "ratio",
            {"source": "cache", "divided_by": "visits"},
            "divided_by: the data plane measures cache",
        ),
        (
            "mean",
            {"source": "errors", "per_unit": "sum"},
            "per_unit: the data plane measures errors",
        ),
        ("proportion", {"source": "latency"}, "latency is not a proportion"),
        ("mean", {"source": "latency", "window_s": 60}, "window_s: latency counts"),
        ("mean", {"source": "latency", "missing_is_zero": True}, "is not measured yet"),
        ("quantile", {}, "quantile_ppm: required for a quantile"),
        ("mean", {"quantile_ppm": 500_000}, "only a quantile has it"),
        ("quantile", {"quantile_ppm": 0}, "quantile_ppm is 0"),
        ("quantile", {"quantile_ppm": 1_000_000}, "quantile_ppm is 1000000"),
        ("proportion", {"cap": 1.0}, "cap: large values do not affect a proportion"),
        ("mean", {"cap": float("inf")}, "cap is inf"),
        ("mean", {"window_s": -1}, "window_s is -1"),
        ("mean", {"window_s": 0}, "window_s is 0"),
        ("mean", {"window_s": 365 * 86_400 + 1}, "window_s is 31536001"),
    ],
)
def test_it_refuses_invalid_fields(kind: str, fields: dict[str, Any], message: str) -> None:
    visits = make_metric("visits", "mean")
    known = {
        "visits": visits,
        "borrowed": create(name="borrowed", outcomes_of=visits),
        "measured": create(name="measured", source="latency"),
    }
    arguments = {
        name: known[value] if name in {"outcomes_of", "divided_by"} else value
        for name, value in fields.items()
    }

    with pytest.raises(Invalid, match=message):
        create(kind, **arguments)


@pytest.mark.parametrize(
    ("kind", "source", "per_unit", "direction"),
    [
        ("proportion", "outcomes", "first", "increase"),
        ("mean", "outcomes", "mean", "increase"),
        ("mean", "latency", "mean", "decrease"),
        ("ratio", "errors", "sum", "decrease"),
        ("proportion", "cache", "first", "increase"),
    ],
)
def test_omitted_fields_have_defaults(
    kind: str, source: str, per_unit: str, direction: str
) -> None:
    metric = create(kind, source=source)

    assert (metric.per_unit, metric.direction) == (per_unit, direction)


def test_all_fields_are_stored() -> None:
    visits, revenue = make_metric("visits", "mean"), make_metric("revenue", "mean")

    create(
        "ratio",
        outcomes_of=revenue,
        divided_by=visits,
        cap=100.0,
        window_s=3_600,
        missing_is_zero=True,
    )

    metric = Metric.objects.get(name="made")
    assert (metric.outcomes_of, metric.divided_by) == (revenue, visits)
    assert (metric.cap, metric.window_s, metric.missing_is_zero) == (100.0, 3_600, True)
    assert AuditEntry.objects.get(target="made").after["divided_by"] == "visits"


def test_outcomes_are_accepted_only_under_their_own_metric() -> None:
    visits = make_metric("visits", "mean")

    assert outcome_refusal_reason(visits) is None
    assert "outcomes of visits" in str(outcome_refusal_reason(create(name="b", outcomes_of=visits)))
    assert "measures latency" in str(outcome_refusal_reason(create(name="c", source="latency")))


def test_only_its_description_changes() -> None:
    metric = make_metric()

    edit_metric(metric=metric, description="is it right?", actor=ANNA)

    metric.refresh_from_db()
    assert metric.description == "is it right?"
    assert AuditEntry.objects.get(action="metric.described").before == {"description": ""}


def test_an_unused_metric_is_deleted() -> None:
    delete_metric(metric=make_metric(), actor=ANNA)

    assert not Metric.objects.exists()
    assert AuditEntry.objects.get(action="metric.deleted").target == "accuracy"


def test_a_metric_in_use_is_not_deleted_and_its_user_is_named() -> None:
    metric = make_metric()
    make_draft(metric=metric)
    observed, source, checked = (
        make_metric(name, "mean") for name in ("observed", "source", "checked")
    )
    observe(observed, "u", 1.0)
    create(outcomes_of=source)
    check = CheckDocument(check="outcome", settings={"metric": "checked", "margin": 1.0})
    steps = (StepDocument(weight_bp=500, checks=(check,)), StepDocument(weight_bp=10_000))
    save_plan(document=PlanDocument(name="guarded", steps=steps), actor=ANNA)

    for used, user in [
        (metric, "experiment weak-or-strong uses it"),
        (observed, "it has recorded outcomes"),
        (source, "metric made is computed from it"),
        (checked, "plan guarded checks it"),
    ]:
        with pytest.raises(Conflict, match=user):
            delete_metric(metric=used, actor=ANNA)
