"""An empty metric answer crashed the check or counted as failure, and a healthy version was rolled
back (argo-rollouts #1466 #1905; flagger #1035 #1689 #1501): here it is no data, and holds.
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
from tests.rollouts.outside import Reply, look, make_asking, service, vector

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("bound", ["at_most", "at_least"])
@pytest.mark.parametrize("told", [vector(), vector("NaN"), vector("+Inf"), vector("0", at=1e9)])
def test_an_answer_without_a_number_of_now_is_no_data_and_holds(
    settings: Any, told: Reply, bound: str
) -> None:
    with service(lambda _: told) as outside:
        settings.PROMETHEUS_URL = outside.url
        check = CheckDocument(check=PROMETHEUS, settings={"query": "up", bound: 0})
        rollout = make_asking(check)
        (row,) = look(rollout)
    assert row.verdict == "no-data"
    assert (rollout.phase, rollout.weight_bp) == (Phase.BAKING, 500)
    assert row.reason.startswith("Prometheus has no number for up: the answer is ")


def test_a_webhook_that_has_no_data_holds() -> None:
    with service(lambda _: Reply(body=b'{"verdict": "no-data", "reason": "too early"}')) as outside:
        rollout = make_asking(CheckDocument(check=WEBHOOK, settings={"url": outside.url}))
        (row,) = look(rollout)
    assert (row.verdict, rollout.phase) == ("no-data", Phase.BAKING)


def test_without_traffic_copies_or_outcomes_every_check_says_no_data_and_holds() -> None:
    Metric.objects.create(name="bought", kind=Metric.Kind.PROPORTION)
    outcome = CheckDocument(check=OUTCOME, settings={"metric": "bought", "margin": 0.1})
    rollout = make_asking(*map(read_check, DEFAULT_CHECKS), outcome)
    rows = look(rollout)
    told = {row.check_name: row.verdict for row in rows}
    # The latency check has no reference either, and says that first.
    assert told.pop("latency") == "insufficient-sample"
    assert set(told.values()) == {"no-data"}
    assert rollout.phase == Phase.BAKING
