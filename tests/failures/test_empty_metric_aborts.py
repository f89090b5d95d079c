"""An empty metric response crashed the check or counted as failure, and a healthy version was
rolled back (argo-rollouts #1466 #1905; flagger #1035 #1689 #1501). Here it is no-data and holds.
"""

from __future__ import annotations

from typing import Any

import pytest

from apps.experiments.models import Metric
from apps.rollouts.check_kinds import (
    DEFAULT_CHECKS,
    OUTCOME,
    PROMETHEUS,
    WEBHOOK,
    CheckDocument,
    read_check,
)
from apps.rollouts.states import Phase
from tests.rollouts.outside import CannedAnswer, look, make_checked_rollout, service, vector

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("bound", ["at_most", "at_least"])
@pytest.mark.parametrize("answer", [vector(), vector("NaN"), vector("+Inf"), vector("0", at=1e9)])
def test_an_answer_without_a_recent_number_is_no_data_and_holds(
    settings: Any, answer: CannedAnswer, bound: str
) -> None:
    with service(lambda _: answer) as outside:
        settings.PROMETHEUS_URL = outside.url
        check = CheckDocument(check=PROMETHEUS, settings={"query": "up", bound: 0})
        rollout = make_checked_rollout(check)
        (row,) = look(rollout)
    assert row.verdict == "no-data"
    assert (rollout.phase, rollout.weight_bp) == (Phase.BAKING, 500)
    assert row.reason.startswith("Prometheus returned no number for up: the ")


def test_a_webhook_that_has_no_data_holds() -> None:
    with service(
        lambda _: CannedAnswer(body=b'{"verdict": "no-data", "reason": "too early"}')
    ) as outside:
        rollout = make_checked_rollout(CheckDocument(check=WEBHOOK, settings={"url": outside.url}))
        (row,) = look(rollout)
    assert (row.verdict, rollout.phase) == ("no-data", Phase.BAKING)


def test_without_traffic_and_outcomes_every_check_is_no_data_and_holds() -> None:
    Metric.objects.create(name="bought", kind=Metric.Kind.PROPORTION)
    outcome = CheckDocument(check=OUTCOME, settings={"metric": "bought", "margin": 0.1})
    rollout = make_checked_rollout(*map(read_check, DEFAULT_CHECKS), outcome)
    rows = look(rollout)
    verdicts = {row.check_name: row.verdict for row in rows}
    # The latency check has no reference either, which it reports first.
    assert verdicts.pop("latency") == "insufficient-sample"
    assert set(verdicts.values()) == {"no-data"}
    assert rollout.phase == Phase.BAKING
