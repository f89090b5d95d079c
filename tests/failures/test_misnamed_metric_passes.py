"""A check with a typo passed silently (flagger #1581). Here such a plan is refused."""

from __future__ import annotations

from typing import Any

import pytest

from apps.experiments.models import Metric
from apps.lib.clock import database_now
from apps.lib.errors import Invalid
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.models import Evaluation, Plan, Rollout
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.services import start_rollout
from tests.rollouts.factories import ANNA, make_model
from tests.rollouts.outside import look, make_checked_rollout, service, vector

pytestmark = pytest.mark.django_db


def save(kind: str, **options: Any) -> Plan:
    check = CheckDocument(check=kind, settings=options)
    step = StepDocument(weight_bp=500, checks=(check,))
    return save_plan(document=PlanDocument(name="typo", steps=(step,)), actor=ANNA)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("eror-rate", {}, "Step 1: unknown kind 'eror-rate'; expected one of error-rate, latency"),
        ("outcome", {"metric": "boguht", "margin": 0.1}, "unknown metric 'boguht'"),
        ("outcome", {"metric": "bought"}, "margin is required"),
        ("outcome", {"metric": "bought", "margin": 1}, "margin must be below 1"),
        ("outcome", {"metrik": "bought", "margin": 0.1}, "unknown setting 'metrik'"),
        ("prometheus", {"query": "up"}, "exactly one of at_most and at_least is required"),
        ("prometheus", {"query": "up", "at_most": 1, "at_least": 0}, "exactly one of at_most"),
        ("prometheus", {"query": " ", "at_most": 1}, "query must not be empty"),
        ("prometheus", {"query": "up", "at_most": "1"}, "at_most must be a number"),
        ("webhook", {"url": "localhost/judge"}, "url: a URL starts with https:// or http://"),
        ("webhook", {"url": "http://["}, "url: 'http://\\[' is not a URL"),
        ("webhook", {"url": "http://169.254.169.254/x"}, "nothing is sent to 169.254.169.254"),
        ("webhook", {}, "url is required"),
    ],
)  # fmt: skip
def test_an_invalid_check_is_refused_and_nothing_is_saved(
    kind: str, settings: dict[str, Any], message: str
) -> None:
    Metric.objects.create(name="bought", kind=Metric.Kind.PROPORTION)
    with pytest.raises(Invalid, match=message):
        save(kind, **settings)
    assert not Plan.objects.exists()


def test_a_deleted_metric_refuses_the_start() -> None:
    metric = Metric.objects.create(name="bought", kind=Metric.Kind.PROPORTION)
    plan = save("outcome", metric="bought", margin=0.1)
    metric.delete()
    model = make_model()
    target = model.versions.get(number=2)
    with pytest.raises(Invalid, match="unknown metric 'bought'"):
        start_rollout(model=model, target=target, plan=plan, actor=ANNA, now=database_now())
    assert not Rollout.objects.exists()


def test_a_metric_unknown_to_prometheus_never_passes(settings: Any) -> None:
    query = CheckDocument(check="prometheus", settings={"query": "erors_total", "at_most": 1})
    with service(lambda _: vector()) as outside:
        settings.PROMETHEUS_URL = outside.url
        look(make_checked_rollout(query))
    assert Evaluation.objects.get().verdict == "no-data"
