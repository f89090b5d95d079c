"""The verdicts of a rollout's outcome check, and their level."""

from __future__ import annotations

import numpy as np
import pytest

from apps.experiments.outcome_judge import CANARY, CONTROL, judge_metric
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.data import ArmData, MetricData, MetricSpec, Stratum
from apps.experiments.stats.quantiles import order_statistics_of

MEDIAN = MetricSpec("m", "guardrail", "quantile", margin=0.5, quantile=0.5)


def of_steps(steps: int) -> MetricData:
    """Return values of the last of `steps` steps, and unit counts of the others."""
    rng = np.random.default_rng(1)
    arms = {}
    for name, n in ((CONTROL, 3_000), (CANARY, 1_000)):
        values = np.sort(rng.normal(10.0, 2.0, n))
        units = Comoments.of(values.reshape(-1, 1))
        strata = {Stratum(step): units for step in range(steps)} if steps > 1 else {}
        arms[name] = ArmData(units, order_statistics_of(values, 0.5), strata=strata)
    return MetricData(MEDIAN, arms)


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_a_quantile_has_half_of_the_level_of_the_step_before(steps: int) -> None:
    """Its reading restarts with each step, so that errors would add up at the full level."""
    share = 0.5 ** (steps - 1)

    judgement = judge_metric(of_steps(steps), alpha_pass=0.1, alpha_fail=0.01)
    expected = judge_metric(of_steps(1), alpha_pass=0.1 * share, alpha_fail=0.01 * share)

    assert judgement.to_pass == expected.to_pass
    assert judgement.least_loss == expected.least_loss
    assert judgement.least_loss is not None
