"""No unit of the small arm has bought yet: there is no verdict, but a reason with missing units."""

from __future__ import annotations

import pytest

from apps.experiments.models import Experiment, Metric
from apps.experiments.results import compute_result
from apps.experiments.services import MetricChoice, VariantSpec
from apps.experiments.ship import ship_experiment
from apps.experiments.unit_values import fold_all
from apps.lib.errors import Conflict
from cli.experiments import exit_code
from tests.experiments.factories import ANNA, NOW, expose, make_running, observe
from tests.rollouts.factories import make_plan

pytestmark = pytest.mark.django_db

CONTROL, TREATED, BUYERS, SPENT = 128, 1_122, 13, 20.0


@pytest.fixture
def experiment() -> Experiment:
    metric = Metric.objects.create(
        name="revenue", kind="mean", per_unit="sum", missing_is_zero=True
    )
    variants = (VariantSpec("old", 1, 1_000, is_control=True), VariantSpec("new", 2, 9_000))
    running = make_running(metrics=[MetricChoice(metric)], variants=variants, planned_units=1_200)
    for i in range(CONTROL):
        expose(running, f"old-{i}", "old")
    for i in range(TREATED):
        expose(running, f"new-{i}", "new")
    for i in range(BUYERS):
        observe(metric, f"new-{i}", SPENT)
    fold_all()
    return running


@pytest.mark.parametrize("is_final", [False, True])
def test_a_small_arm_without_a_buyer_is_not_enough_data(
    experiment: Experiment, is_final: bool
) -> None:
    result = compute_result(experiment, NOW, is_final=is_final).result

    assert result is not None
    assert (result["state"], result["winner"]) == ("not-enough-data", None)
    assert "old expects only 1.3 units with a value other than 0, 3 are needed" in result["verdict"]
    assert "about 170 more units in old" in result["verdict"]
    # The exit code of `interlock experiment results` without a decision.
    assert exit_code({"state": "running", "result": result}) == 1


def test_it_is_not_shipped(experiment: Experiment) -> None:
    make_plan()
    result = compute_result(experiment, NOW).result
    Experiment.objects.filter(pk=experiment.pk).update(result=result)
    experiment.refresh_from_db()

    with pytest.raises(Conflict, match="there is no winner yet"):
        ship_experiment(experiment=experiment, actor=ANNA, now=NOW)
