"""The missing data of a hold: counts and times that follow from its evidence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from apps.rollouts.analysis import StepInputs, judge_checks
from apps.rollouts.decisions import JudgedCheck
from apps.rollouts.evidence import Arm, Interval, LatencyReference
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.remaining_evidence import describe_missing
from contract.messages import ClusterCounts

START = datetime(2026, 1, 1, tzinfo=UTC)
REFERENCE = LatencyReference(p50=70, p95=80, p99=90, n=5_000, frozen_at=START)


def intervals(count: int, canary: int = 5, control: int = 95) -> list[Interval]:
    def arm(n: int) -> Arm:
        slow = n // 20
        latency = {60: n // 2, 75: n - n // 2 - slow, 85: slow}
        return Arm(n, 0, n, latency, n, 0, {i: ClusterCounts(n // 5, n // 5) for i in range(5)})

    return [
        Interval(0, START + timedelta(seconds=10 * i), arm(canary), arm(control))
        for i in range(count)
    ]


def missing(
    rows: list[Interval],
    *,
    reference: LatencyReference | None = REFERENCE,
    known: int = 5_000,
    requests: tuple[int, int] = (0, 0),
) -> dict[str, str]:
    plan = PlanDocument(name="p", steps=(StepDocument(weight_bp=500),))
    question = StepInputs(plan, 0, rows, reference, known)
    checks = plan.steps[0].check_documents
    answers = [JudgedCheck(c, r) for c, r in zip(checks, judge_checks(question), strict=True)]
    now = START + timedelta(seconds=10 * len(rows))
    return describe_missing(answers, rows, now=now, samples_min=100, requests=requests)


def test_proof_is_described_as_answers_and_time() -> None:
    descriptions = missing(intervals(20))
    have, needed = descriptions["error-rate"].split(" answers")[0].split(" of about ")
    assert int(have) == 100
    assert 150 < int(needed) < 600
    assert "answers from the canary; about" in descriptions["latency"]
    assert descriptions["error-rate"].endswith("at the rate of this step so far")


def test_a_proven_check_lacks_nothing() -> None:
    assert "error-rate" in missing(intervals(20))
    assert "error-rate" not in missing(intervals(200))


def test_stables_usual_latency_and_units_are_counted_too() -> None:
    descriptions = missing(intervals(2, canary=1, control=5), reference=None, known=12)
    assert descriptions["latency"].startswith("12 of about 30 answers from stable; about")
    assert "units on both versions" in missing(intervals(3, canary=5, control=10))["sample-ratio"]


@pytest.mark.parametrize(("have", "text"), [(100, "about 20 s at the rate"), (110, None)])
def test_the_steps_own_requests_are_described_with_their_time(have: int, text: str | None) -> None:
    description = missing(intervals(20), requests=(have, 110)).get("requests")
    assert (text is None) if description is None else description.startswith(text or "?")


def test_without_any_answer_no_time_is_given() -> None:
    assert missing([], reference=None, known=0)["latency"].endswith("none in this step yet")
