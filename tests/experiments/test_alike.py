"""A rollout and an experiment get the same values and comparisons from the same rows."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from apps.experiments.models import Experiment, Metric, WeightChange
from apps.experiments.outcome_judge import CANARY, CONTROL, from_json, judge_metric, to_json
from apps.experiments.phases import SETTLING
from apps.experiments.rollout_models import RolloutExposure
from apps.experiments.rollout_units import read_units, span_of
from apps.experiments.services import MetricChoice
from apps.experiments.stats import estimates
from apps.experiments.stats.data import MetricData
from apps.experiments.stats.margins import judge_margin
from apps.experiments.stats.sequential import PLANNED_UNITS_DEFAULT
from apps.experiments.sufficient_statistics import collect_statistics
from apps.experiments.unit_values import fold_all
from apps.lib.clock import database_now
from apps.rollouts.models import Rollout, RolloutEvent
from apps.rollouts.phases import enter_step
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from tests.experiments.factories import NOW, expose, make_running, observe
from tests.rollouts import factories

pytestmark = pytest.mark.django_db

LATER = NOW + timedelta(seconds=400)
SECOND_STEP_S = 100.0
ARMS = {"strong": CANARY, "weak": CONTROL}

CASES: dict[str, dict[str, Any]] = {
    "first event": {"kind": "proportion"},
    "any event": {"kind": "proportion", "per_unit": "max"},
    "no event is none": {"kind": "proportion", "missing_is_zero": True},
    "event in a window": {"kind": "proportion", "missing_is_zero": True, "window_s": 120},
    "first value": {"kind": "mean", "per_unit": "first"},
    "mean": {"kind": "mean"},
    "largest": {"kind": "mean", "per_unit": "max", "window_s": 250},
    "sum": {"kind": "mean", "per_unit": "sum", "missing_is_zero": True},
    "capped sum": {"kind": "mean", "per_unit": "sum", "missing_is_zero": True, "cap": 12.0},
    "sum in a window": {"kind": "mean", "per_unit": "sum", "window_s": 120},
    "fewer is better": {"kind": "mean", "per_unit": "sum", "direction": "decrease"},
    "ratio": {"kind": "ratio"},
    "capped ratio": {"kind": "ratio", "cap": 12.0, "window_s": 250},
    "median": {"kind": "quantile", "quantile_ppm": 500_000},
    "upper quartile of sums": {
        "kind": "quantile",
        "quantile_ppm": 750_000,
        "per_unit": "sum",
        "missing_is_zero": True,
    },
    "adjusted mean": {"kind": "mean", "covariate_s": 150},
    "adjusted sum": {
        "kind": "mean",
        "per_unit": "sum",
        "missing_is_zero": True,
        "covariate_s": 150,
    },
    "adjusted ratio": {"kind": "ratio", "covariate_s": 150},
}


def make_metric(fields: dict[str, Any]) -> tuple[Metric, list[Metric]]:
    """Return a metric with these fields, and the metrics whose outcomes it uses."""
    kind = fields["kind"]
    sent = [
        Metric.objects.create(name="sent", kind="proportion" if kind == "proportion" else "mean")
    ]
    more: dict[str, Any] = {"outcomes_of": sent[0]}
    if kind == "ratio":
        sent.append(Metric.objects.create(name="items", kind="mean"))
        more |= {"divided_by": sent[1]}
    defaults = {"per_unit": {"proportion": "first", "ratio": "sum"}.get(kind, "mean")}
    return Metric.objects.create(name="m", **(defaults | fields | more)), sent


def make_both(metric: Metric, covariate_s: int, steps: int) -> tuple[Experiment, Rollout]:
    """Return a running experiment and a rollout with `steps` phases or steps, without units."""
    experiment = make_running(metrics=[MetricChoice(metric)], covariate_s=covariate_s)
    plan = PlanDocument(
        name="canary", steps=tuple(StepDocument(weight_bp=bp) for bp in (500, 5_000, 10_000))
    )
    save_plan(document=plan, is_default=True, actor=factories.ANNA)
    factories.make_instance()
    rollout = factories.make_baking(factories.make_model("wine"))
    if steps == 2:
        enter_step(rollout, 1, "on", factories.ANNA, database_now())
        at = NOW + timedelta(seconds=SECOND_STEP_S)
        weights = experiment.weights.get().weights_bp
        WeightChange.objects.create(experiment=experiment, at=at, weights_bp=weights)
        RolloutEvent.objects.filter(step_index=1).update(at=at)
    RolloutEvent.objects.filter(step_index=0).update(at=NOW)
    return experiment, rollout


def fill(experiment: Experiment, rollout: Rollout, sent: list[Metric], seed: int) -> None:
    """Expose the same units to both at the same time, with outcomes before and after it."""
    dice = random.Random(seed)
    for i in range(160):
        at_s, unit = dice.uniform(0, 200), f"u{i}"
        if at_s >= SECOND_STEP_S:
            # An experiment excludes units exposed while a change was taking effect.
            at_s += SETTLING.total_seconds()
        is_canary = dice.random() < (0.2 if at_s < SECOND_STEP_S else 0.5)
        is_both = i % 23 == 0
        expose(experiment, unit, "strong" if is_canary else "weak", at_s, crossed_over=is_both)
        at = NOW + timedelta(seconds=at_s)
        RolloutExposure.objects.create(
            rollout=rollout,
            unit=unit,
            bucket=100 if is_canary else 9_000,
            canary_at=at if is_canary or is_both else None,
            control_at=at if not is_canary or is_both else None,
        )
        for metric in sent:
            for k in range(dice.choice([0, 1, 1, 3])):
                value = (
                    float(dice.random() < 0.4)
                    if metric.kind == "proportion"
                    else dice.expovariate(0.1)
                )
                observe(metric, unit, value, at_s + dice.uniform(-120, 180) + k / 1_000)


def of_rollout(rollout: Rollout, metric: Metric, covariate_s: int) -> MetricData:
    """Return the rollout's statistics as stored in the decision log."""
    span = span_of(rollout)
    assert span
    units = read_units(rollout, metric, span, LATER, covariate_s=covariate_s)
    return from_json(to_json(units.data))


def of_experiment(experiment: Experiment) -> MetricData:
    """Return the experiment's statistics, with the arm names of a rollout."""
    fold_all()
    (metric,) = collect_statistics(experiment, LATER).data.metrics
    return replace(metric, arms={ARMS[name]: arm for name, arm in metric.arms.items()})


def near(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal up to the order of additions."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(near, one, other))
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)
    return bool(one == other)


def check(fields: dict[str, Any], steps: int) -> None:
    """Assert that both get the same results from the same rows."""
    definition = dict(fields)
    covariate_s = definition.pop("covariate_s", 0)
    metric, sent = make_metric(definition)
    experiment, rollout = make_both(metric, covariate_s, steps)
    fill(experiment, rollout, sent, seed=steps)
    metric = Metric.objects.select_related("outcomes_of", "divided_by").get(pk=metric.pk)

    one, other = of_rollout(rollout, metric, covariate_s), of_experiment(experiment)

    assert one.arms.keys() == other.arms.keys() == {CANARY, CONTROL}
    assert min(arm.comoments.n for arm in one.arms.values()) > 10
    assert len(one.arms[CANARY].strata) == (steps if steps > 1 else 0)
    assert near(to_json(one)["arms"], to_json(other)["arms"])
    judged_alike(one, other)


@pytest.mark.parametrize("case", CASES)
def test_a_rollout_and_an_experiment_judge_alike(case: str) -> None:
    check(CASES[case], steps=2)


@pytest.mark.parametrize("case", ["any event", "capped sum", "median", "adjusted ratio"])
def test_they_judge_alike_before_shares_change(case: str) -> None:
    check(CASES[case], steps=1)


def judged_alike(one: MetricData, other: MetricData) -> None:
    """Assert that both have the same estimate, and the same non-inferiority verdict."""
    spec = replace(other.spec, margin=0.5)
    estimated = estimates.compare_arms(other, CONTROL, CANARY)
    rare = estimates.rare_event_counts(other, CONTROL, CANARY)
    expected = judge_margin(
        spec, estimated, rare, alpha=0.1, planned_units=PLANNED_UNITS_DEFAULT, is_final=False,
        is_worse=False, stop_reason="",
    )  # fmt: skip
    judged = judge_metric(
        replace(one, spec=replace(one.spec, margin=0.5)), alpha_pass=0.1, alpha_fail=0.01
    )
    assert expected
    assert judged.to_pass.state == expected.state
    assert judged.to_pass.bound == pytest.approx(expected.bound)
    for field in ("state", "test", "effect", "standard_error"):
        assert getattr(judged.estimate.difference, field) == pytest.approx(
            getattr(estimated.difference, field)
        )
