"""What a hold says is missing: counts and times that follow from the evidence it shows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from apps.rollouts.analysis import Question, answer
from apps.rollouts.decisions import Answered
from apps.rollouts.evidence import Arm, Interval, LatencyReference
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.remaining_evidence import missing_of
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
    question = Question(plan, 0, rows, reference, known)
    checks = plan.steps[0].questions
    answers = [Answered(c, r) for c, r in zip(checks, answer(question), strict=True)]
    now = START + timedelta(seconds=10 * len(rows))
    return missing_of(answers, rows, now=now, samples_min=100, requests=requests)


def test_proof_is_told_as_answers_and_time() -> None:
    told = missing(intervals(20))
    have, needed = told["error-rate"].split(" answers")[0].split(" of about ")
    assert int(have) == 100
    assert 150 < int(needed) < 600
    assert "answers of the canary; about" in told["latency"]
    assert told["error-rate"].endswith("at the rate of this step so far")


def test_nothing_is_missing_of_what_is_proven() -> None:
    assert "error-rate" in missing(intervals(20))
    assert "error-rate" not in missing(intervals(200))


def test_stables_usual_latency_and_units_are_counted_too() -> None:
    told = missing(intervals(2, canary=1, control=5), reference=None, known=12)
    assert told["latency"].startswith("12 of about 30 answers of stable; about")
    assert "units of both" in missing(intervals(3, canary=5, control=10))["sample-ratio"]


@pytest.mark.parametrize(("have", "told"), [(100, "about 20 s at the rate"), (110, None)])
def test_the_steps_own_requests_are_told_with_the_time_they_take(
    have: int, told: str | None
) -> None:
    found = missing(intervals(20), requests=(have, 110)).get("requests")
    assert (told is None) if found is None else found.startswith(told or "?")


def test_without_any_answer_no_time_is_told() -> None:
    assert missing([], reference=None, known=0)["latency"].endswith("none came in this step yet")
