"""Sample-ratio alarms from planned changes of the ratio (mozilla/experimenter #16010, #16011)."""

from __future__ import annotations

import numpy as np

from apps.rollouts.sample_ratio import SplitInterval, judge_sample_ratio
from apps.rollouts.verdicts import Verdict

STEPS_BP = (500, 1_000, 2_500, 5_000)
SETTLED_N = 10_000


def planned(rng: np.random.Generator) -> list[SplitInterval]:
    """Return the intervals of a rollout that is split as configured in each step."""
    drawn = [int(rng.binomial(SETTLED_N, share / 10_000)) for share in STEPS_BP]
    return [
        SplitInterval(n, SETTLED_N - n, share) for n, share in zip(drawn, STEPS_BP, strict=True)
    ]


def test_planned_changes_of_the_share_raise_no_alarm() -> None:
    rng = np.random.default_rng(46)
    runs = [planned(rng) for _ in range(400)]
    naive = [[SplitInterval(i.canary_n, i.control_n, STEPS_BP[-1]) for i in run] for run in runs]

    assert sum(judge_sample_ratio(run).verdict is Verdict.FAIL for run in runs) == 0
    assert all(judge_sample_ratio(run).verdict is Verdict.FAIL for run in naive)


def test_a_significant_but_irrelevant_deviation_raises_no_alarm() -> None:
    result = judge_sample_ratio([SplitInterval(1_020_000, 18_980_000, 500)])

    p_value = result.evidence["p_value"]
    assert isinstance(p_value, float)
    assert p_value < 1e-6
    assert result.verdict is Verdict.PASS


def test_a_wrong_split_fails_with_its_numbers() -> None:
    result = judge_sample_ratio([SplitInterval(350, 9_650, 500)])

    assert result.verdict is Verdict.FAIL
    assert "350 of 10,000 exposures, 500 expected (-30.0 %, p=" in result.reason
