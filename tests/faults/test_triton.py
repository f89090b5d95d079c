"""The only Triton dies or hangs, or one version's process dies: 503, 504 or fallback to stable."""

from __future__ import annotations

from time import monotonic, sleep

from tests.faults.ground import Ground, wait_until
from tests.faults.load import Load, failures, recovered_after_s, report
from tests.faults.seed import FRAGILE

TIMEOUT_S = 1.0


def test_requests_get_503_until_a_killed_triton_is_back(ground: Ground) -> None:
    with Load(ground.port, ground.question) as load:
        sleep(0.5)
        killed_at = ground.kill("triton")
        wait_until(lambda: any(a.failed for a in load.since(killed_at)), 5, "a request fails")
        wait_until(lambda: load.is_well(killed_at), 40, "it is back")
    report("The only Triton killed", load, killed_at)

    failed = [answer for answer in load.answers if answer.failed]
    assert {answer.status for answer in failed} == {503}
    assert all(answer.retry_after for answer in failed)
    assert max(answer.took_s for answer in load.answers) < TIMEOUT_S + 1


def test_requests_to_a_stopped_triton_end_at_the_deadline(ground: Ground) -> None:
    with Load(ground.port, ground.question, threads=32) as load:
        sleep(0.5)
        with ground.stopped("triton") as stopped_at:
            sleep(3.0)
            shed = load.since(monotonic() - 1.0)
        continued_at = monotonic()
        wait_until(lambda: load.is_well(continued_at), 30, "it is back")
    report("The only Triton stopped for 3 s", load, stopped_at)

    assert {answer.status for answer in load.answers} == {200, 503, 504}
    assert max(answer.took_s for answer in load.answers) < TIMEOUT_S + 1
    # With an open breaker no request waits, except the one that tries.
    assert sum(answer.took_s > TIMEOUT_S / 2 for answer in shed) <= 2
    assert recovered_after_s(load.answers, continued_at) < 10


def test_a_killed_canary_process_fails_no_request_and_is_rolled_back(ground: Ground) -> None:
    with Load(ground.port, ground.question) as load:
        rollout = ground.start_rollout(FRAGILE)
        wait_until(lambda: load.answers[-1].variant == "canary", 20, "the canary gets traffic")
        killed_at = ground.kill_model_process(ground.target(rollout))
        took_s = wait_until(lambda: ground.phase(rollout) == "rolled_back", 30, "it rolls back")
    report(f"Canary's process killed (rolled back after {took_s:.1f} s)", load, killed_at)

    assert failures(load.answers) == {}
    assert any(answer.fallback for answer in load.since(killed_at))
    # The first of two reasons: the breaker's trip, or the check's evidence.
    reason = ground.control.get(rollout)["reason"]
    assert "circuit breaker" in reason or "error-rate" in reason
