"""Two instances whose clocks are wrong by five minutes: only the database's time counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic

import pytest

from tests.faults.ground import Ground, wait_until
from tests.faults.load import Load, Outcomes, failures, report
from tests.faults.planes import Plane
from tests.faults.seed import METRIC

SHIFTS_S = {"early": -300.0, "late": 300.0}


@pytest.fixture
def planes(ground: Ground, tmp_path: Path) -> Iterator[list[Plane]]:
    url = ground.stack.urls.web
    planes = [Plane(ground, tmp_path, url, name, shift_s) for name, shift_s in SHIFTS_S.items()]
    with closing(planes[0]), closing(planes[1]):
        for plane, shift_s in zip(planes, SHIFTS_S.values(), strict=True):
            plane.start()
            assert plane.clock_shift_s() == pytest.approx(shift_s, abs=5)
        yield planes


def test_wrong_clocks_fail_no_request_and_do_not_matter(
    ground: Ground, planes: list[Plane]
) -> None:
    early, late = planes
    with (
        Load(ground.port, ground.question) as load,
        Load(early.port, ground.question, per_s=50) as on_early,
        Load(late.port, ground.question, per_s=50) as on_late,
        Outcomes(late.port, "wc", METRIC) as sent,
    ):
        began = monotonic()
        rollout = ground.start_rollout()
        took_s = wait_until(lambda: ground.passed(rollout), 40, "the rollout passes")
    report(f"Clocks wrong by 5 min (rollout passed after {took_s:.1f} s)", load, began)

    for each in (load, on_early, on_late):
        assert failures(each.answers) == {}
    assert ground.acked(rollout) >= SHIFTS_S.keys()
    ground.expect_outcomes("wc", sent.accepted)
