"""Redis dies or is full: predictions continue, events are spooled, nothing is lost."""

from __future__ import annotations

from tests.faults.ground import Ground, wait_until
from tests.faults.load import Load, Outcomes, failures, report
from tests.faults.seed import METRIC


def test_a_killed_redis_fails_no_prediction_and_loses_no_event(ground: Ground) -> None:
    before = ground.settled_count()
    with Load(ground.port, ground.question) as load, Outcomes(ground.port, "rk", METRIC) as sent:
        rollout = ground.start_rollout()
        wait_until(lambda: ground.phase(rollout) == "baking", 15, "the canary gets traffic")
        killed_at = ground.kill("redis")
        took_s = wait_until(lambda: ground.passed(rollout), 40, "the rollout passes")
    report(f"Redis killed (rollout passed {took_s:.1f} s later)", load, killed_at)

    assert failures(load.answers) == {}
    assert len(sent.accepted) == len(sent.sent)
    ground.expect_counted(before, len(load.answers))
    ground.expect_outcomes("rk", sent.accepted)
    ground.expect_each_step_once(rollout)


def test_a_full_redis_holds_a_rollout_that_passes_once_there_is_room(ground: Ground) -> None:
    before = ground.settled_count()
    with Load(ground.port, ground.question) as load, Outcomes(ground.port, "rf", METRIC) as sent:
        with ground.full_redis() as full_at:
            rollout = ground.start_rollout()
            ground.tick(for_s=6)
            # On a busy machine it takes longer until the first checks are due.
            wait_until(lambda: ground.tick(for_s=1) or ground.verdicts(rollout), 20, "a verdict")
            phase, verdicts = ground.phase(rollout), ground.verdicts(rollout)
        took_s = wait_until(lambda: ground.phase(rollout) == "succeeded", 30, "the rollout passes")
    report(f"Redis full for 6 s (rollout passed {took_s:.1f} s later)", load, full_at)

    assert (phase, verdicts) == ("baking", {"no-data"})
    assert failures(load.answers) == {}
    assert len(sent.accepted) == len(sent.sent)
    ground.expect_counted(before, len(load.answers))
    ground.expect_outcomes("rf", sent.accepted)
