"""A rollout's check of outcomes uses the metric's definition, as an experiment does.

Each side has 3,000 units. 150 units of the canary buy and 600 of stable, each for about 10: revenue
per unit fell by 75 %. The mean per purchase shows no difference: 10.48 vs 10.5.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from apps.experiments.guardrails import observe_outcome
from apps.experiments.models import Metric, OutcomeRow
from apps.experiments.outcome_judge import judge_outcome
from apps.experiments.rollout_models import RolloutExposure
from apps.lib.clock import database_now
from apps.rollouts.check_kinds import OUTCOME, CheckDocument
from apps.rollouts.checks import CheckSettings
from apps.rollouts.models import Rollout
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.verdicts import CheckResult
from tests.rollouts.factories import ANNA, make_baking, make_instance, make_model

pytestmark = pytest.mark.django_db

UNITS = 3_000
PER_UNIT = {"per_unit": "sum", "missing_is_zero": True}


@pytest.fixture
def rollout() -> Rollout:
    steps = (StepDocument(weight_bp=5_000), StepDocument(weight_bp=10_000))
    save_plan(document=PlanDocument(name="canary", steps=steps), is_default=True, actor=ANNA)
    make_instance()
    return make_baking(make_model())


def metric(name: str, kind: str = "mean", **fields: Any) -> Metric:
    return Metric.objects.create(name=name, kind=kind, **fields)


def expose(rollout: Rollout, at: datetime) -> None:
    for side in ("canary", "control"):
        RolloutExposure.objects.bulk_create(
            RolloutExposure(rollout=rollout, unit=f"{side}-{i}", bucket=9_000, **{f"{side}_at": at})
            for i in range(UNITS)
        )


def buy(of: Metric, side: str, buyers: int, amount: float, at: datetime, *, first: int = 0) -> None:
    """Store an outcome of about `amount` for `buyers` units of a side."""
    OutcomeRow.objects.bulk_create(
        OutcomeRow(
            event_id=f"{of.name}-{side}-{i}-{at}",
            unit=f"{side}-{i}",
            metric=of,
            value=amount + i % 3 - 1,
            occurred_at=at,
        )
        for i in range(first, first + buyers)
    )


def judge(rollout: Rollout, name: str, margin: float, now: datetime | None = None) -> CheckResult:
    check = CheckDocument(check=OUTCOME, settings={"metric": name, "margin": margin})
    observed = observe_outcome(rollout, check, now or database_now() + timedelta(seconds=1))
    return judge_outcome(check, observed, CheckSettings(alpha=0.01, guardrails=2))


def test_revenue_per_unit_that_fell_by_three_quarters_fails(rollout: Rollout) -> None:
    at, revenue = database_now(), metric("revenue", **PER_UNIT)
    expose(rollout, at)
    buy(revenue, "canary", 150, 10.5, at)
    buy(revenue, "control", 600, 10.5, at)

    result = judge(rollout, "revenue", 0.2)

    assert result.verdict == "fail"
    assert "revenue 0.525 vs stable 2.1, margin 0.2, n=3000 vs 3000" in result.reason


def test_a_ratio_is_the_sums_ratio_and_not_the_mean_of_each_unit(rollout: Rollout) -> None:
    at, revenue, items = database_now(), metric("revenue"), metric("items")
    metric("price", "ratio", outcomes_of=revenue, divided_by=items, per_unit="sum")
    expose(rollout, at)
    for side, price in (("canary", 5.0), ("control", 10.0)):
        buy(items, side, 1_800, 2.0, at)
        buy(revenue, side, 1_800, 2.0 * price, at)

    result = judge(rollout, "price", 0.5)

    assert result.verdict == "fail"
    assert "price 5 vs stable 10, margin 0.5" in result.reason


def test_a_quantile_is_compared_as_a_quantile(rollout: Rollout) -> None:
    at = database_now()
    basket = metric("basket", "quantile", quantile_ppm=500_000)
    expose(rollout, at)
    # Half of the canary's baskets are small; a few huge ones keep the means alike.
    for first, amount in ((0, 5.0), (1_600, 25.0)):
        for i in range(4):
            buy(basket, "canary", 400, amount + i, at, first=first + 400 * i)
    for i in range(4):
        buy(basket, "control", 700, 14.0 + i, at, first=700 * i)

    result = judge(rollout, "basket", 1.0)

    assert result.verdict == "fail"
    assert "of the units first exposed in step 1" in result.reason


def test_a_cap_limits_one_huge_order(rollout: Rollout) -> None:
    at, revenue = database_now(), metric("revenue", **PER_UNIT, cap=20.0)
    expose(rollout, at)
    buy(revenue, "canary", 150, 10.5, at)
    buy(revenue, "canary", 1, 100_000.0, at, first=200)
    buy(revenue, "control", 600, 10.5, at)

    assert judge(rollout, "revenue", 0.2).verdict == "fail"


def test_an_attribution_window_limits_outcomes_and_delays_units(rollout: Rollout) -> None:
    met, revenue = database_now(), metric("revenue", **PER_UNIT, window_s=3_600)
    expose(rollout, met)
    late = met + timedelta(hours=2)
    buy(revenue, "canary", 150, 10.5, met)
    buy(revenue, "control", 600, 10.5, met)
    # Later purchases of the canary's users would compensate for it.
    buy(revenue, "canary", 450, 10.5, late, first=150)

    waiting = judge(rollout, "revenue", 0.2)

    assert waiting.verdict == "no-data"
    assert "none of the canary's 3000 units has an outcome and a closed window of 1:00:00" in (
        waiting.reason
    )
    assert judge(rollout, "revenue", 0.2, late + timedelta(hours=1)).verdict == "fail"
