"""Redis dies, and Redis is full: predictions go on, events spool, nothing passes unseen."""

from __future__ import annotations

from time import sleep

from tests.faults.ground import Ground, wait_until
from tests.faults.load import Load, Outcomes, failures, report
from tests.faults.seed import METRIC


def test_a_killed_redis_fails_no_prediction_and_loses_no_event(ground: Ground) -> None:
    before = ground.counted()
    with Load(ground.port, ground.question) as load, Outcomes(ground.port, "rk", METRIC) as sent:
        sleep(1.0)
        killed_at = ground.kill("redis")
        sleep(2.0)
    report("Redis killed", load, killed_at)

    assert failures(load.answers) == {}
    assert len(sent.accepted) == len(sent.sent)
    wait_until(lambda: ground.counted() - before >= len(load.answers), 20, "telemetry resumes")
    assert ground.counted() - before == len(load.answers)
    wait_until(lambda: set(ground.stored_outcomes("rk")) >= sent.accepted, 20, "outcomes arrive")
    assert sorted(ground.stored_outcomes("rk")) == sorted(sent.accepted)
