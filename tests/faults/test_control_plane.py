"""PostgreSQL or the whole control plane dies: predictions continue, decisions wait."""

from __future__ import annotations

from time import sleep

from tests.faults.ground import CONTROL_PLANE, Ground, wait_until
from tests.faults.load import Load, Outcomes, failures, recovered_after_s, report
from tests.faults.seed import METRIC


def test_a_killed_postgres_fails_no_prediction_and_the_rollout_continues(ground: Ground) -> None:
    before = ground.settled_count()
    with Load(ground.port, ground.question) as load, Outcomes(ground.port, "pk", METRIC) as sent:
        rollout = ground.start_rollout()
        wait_until(lambda: ground.phase(rollout) == "baking", 15, "the canary gets traffic")
        killed_at = ground.kill("postgres")
        took_s = wait_until(lambda: ground.passed(rollout), 40, "the rollout passes")
    report(f"PostgreSQL killed (rollout passed {took_s:.1f} s later)", load, killed_at)

    assert failures(load.answers) == {}
    assert len(sent.accepted) == len(sent.sent)
    ground.expect_counted(before, len(load.answers))
    ground.expect_outcomes("pk", sent.accepted)
    ground.expect_each_step_once(rollout)


def test_a_killed_control_plane_fails_no_prediction_and_resumes(ground: Ground) -> None:
    before = ground.settled_count()
    with Load(ground.port, ground.question) as load, Outcomes(ground.port, "ck", METRIC) as sent:
        rollout = ground.start_rollout()
        wait_until(lambda: ground.phase(rollout) == "baking", 15, "the canary gets traffic")
        killed_at = ground.kill(*CONTROL_PLANE)
        took_s = wait_until(lambda: ground.passed(rollout), 60, "the rollout passes")
    report(f"Control plane killed (rollout passed {took_s:.1f} s later)", load, killed_at)

    assert failures(load.answers) == {}
    assert len(sent.accepted) == len(sent.sent)
    ground.expect_counted(before, len(load.answers))
    ground.expect_outcomes("ck", sent.accepted)
    ground.expect_each_step_once(rollout)


def test_a_killed_data_plane_comes_back_while_the_control_plane_hangs(ground: Ground) -> None:
    with Load(ground.port, ground.question) as load, Outcomes(ground.port, "dk", METRIC) as sent:
        sleep(0.5)
        with ground.stopped("web"):
            killed_at = ground.kill_with_children("dataplane")
            wait_until(lambda: load.is_well(killed_at), 30, "predictions succeed again")
    report("Data plane killed, control plane stopped", load, killed_at)

    # There is no other instance: the kernel refuses connections at once.
    assert {answer.status for answer in load.answers} == {200, 0}
    assert recovered_after_s(load.answers, killed_at) < 10
    ground.expect_outcomes("dk", sent.accepted)
