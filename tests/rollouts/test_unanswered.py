"""Client timeouts fail no version, and a version without answers fails at any rate."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from apps.rollouts.evidence import Arm, Interval, SliceCounts
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.verdicts import CheckResult, Verdict
from contract.messages import ClusterCounts
from tests.rollouts.test_analysis import ask, series, step_inputs

SECOND = timedelta(seconds=1)


def arm(left: dict[int, int], each: int, clusters: int = 32, *, has_units: bool = True) -> Arm:
    """`each` units assigned in every cluster of an interval; `left` of them without an answer."""
    counts = {
        number: ClusterCounts(
            units=each * has_units,
            assigned=each,
            unanswered=left.get(number, 0),
            n=each - left.get(number, 0),
        )
        for number in range(clusters)
    }
    n, missed = each * clusters, sum(left.values())
    slices = [SliceCounts(n // 5, 0, n // 5, missed // 5) for _ in range(5)]
    slices[0] = SliceCounts(n - n // 5 * 4, 0, n - n // 5 * 4, missed - missed // 5 * 4)
    return Arm(n=n - missed, requests=n - missed, assigned=n, unanswered=missed, clusters=counts,
               slices=slices)  # fmt: skip


def unanswered(intervals: list[Interval]) -> CheckResult:
    return ask(step_inputs(intervals))["unanswered"]


@pytest.mark.parametrize("each", [1, 2])
def test_one_impatient_user_on_the_canary_is_for_a_person(each: int) -> None:
    bot = series(arm({7: 1}, each), arm({}, 19 * each), count=60)
    result = unanswered(bot)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "but only among one user or a few" in result.reason


def test_a_canary_that_leaves_units_of_several_clusters_is_rolled_back() -> None:
    for left in ({7: 1, 8: 1}, dict.fromkeys(range(4), 1), dict.fromkeys(range(32), 1)):
        result = unanswered(series(arm(left, 1), arm({}, 19), count=60))
        assert result.verdict is Verdict.FAIL, left


def test_a_canary_with_few_users_that_hangs_for_all_of_them_is_rolled_back() -> None:
    for clusters in (1, 2, 3):
        hangs = arm(dict.fromkeys(range(clusters), 1), 1, clusters)
        result = unanswered(series(hangs, arm({}, 2), count=30))
        assert result.verdict is Verdict.FAIL, clusters


def test_one_request_a_second_is_enough_also_where_ends_come_an_interval_late() -> None:
    """5 % of them: a canary's request every other interval, whose end is in the next one."""
    control = arm({}, 1, 10)
    intervals = series(arm({}, 0, 0), control, count=40)
    for place in range(0, 40, 2):
        unit = 13 * place % 32
        sent = Arm(assigned=1, clusters={unit: ClusterCounts(1, 1)})
        late = Arm(assigned=1, unanswered=1, clusters={unit: ClusterCounts(0, 0, 1)})
        intervals[place] = replace(intervals[place], canary=sent)
        intervals[place + 1] = replace(intervals[place + 1], canary=late)
    assert unanswered(intervals).verdict is Verdict.FAIL


def test_a_client_without_a_unit_cannot_choose_a_version() -> None:
    """The canary hangs only for one client address of several."""
    hangs = arm({3: 2}, 2, 4, has_units=False)
    control = arm({}, 38, 4, has_units=False)
    assert unanswered(series(hangs, control, count=60)).verdict is Verdict.FAIL


def test_clients_impatient_with_both_versions_prove_nothing() -> None:
    both = series(arm({7: 1, 9: 1}, 2), arm({7: 19, 9: 19}, 38), count=60)
    assert unanswered(both).verdict is not Verdict.FAIL


PATIENT_S = 300.0


@pytest.mark.parametrize(
    ("count", "verdict"),
    [(20, Verdict.INSUFFICIENT_SAMPLE), (32, Verdict.INSUFFICIENT_SAMPLE), (90, Verdict.PASS)],
)
def test_requests_in_progress_are_no_proof_of_answers(count: int, verdict: Verdict) -> None:
    """A model with a timeout of five minutes: no request has ended before that."""
    inputs = step_inputs(series(arm({}, 2), arm({}, 38), count=count))
    assert ask(inputs)["unanswered"].verdict is Verdict.PASS
    result = ask(replace(inputs, timeout_s=PATIENT_S))["unanswered"]
    assert result.verdict is verdict, result.reason


def test_a_step_with_only_requests_in_progress_does_not_pass() -> None:
    before = series(arm({}, 2), arm({}, 38), count=90)
    now = [
        replace(each, step_index=1, started_at=before[-1].started_at + 10 * (n + 1) * SECOND)
        for n, each in enumerate(before[:20])
    ]
    steps = (StepDocument(weight_bp=500), StepDocument(weight_bp=2_500))
    inputs = replace(step_inputs([*before, *now], step=1), plan=PlanDocument(name="p", steps=steps))
    assert ask(inputs)["unanswered"].verdict is Verdict.PASS
    result = ask(replace(inputs, timeout_s=PATIENT_S))["unanswered"]
    assert result.verdict is Verdict.INSUFFICIENT_SAMPLE
    assert "may still be in progress" in result.reason


def test_a_failing_version_is_rolled_back_with_requests_in_progress() -> None:
    left = dict.fromkeys(range(32), 1)
    inputs = step_inputs(series(arm(left, 2), arm({}, 38), count=20))
    assert ask(replace(inputs, timeout_s=PATIENT_S))["unanswered"].verdict is Verdict.FAIL
