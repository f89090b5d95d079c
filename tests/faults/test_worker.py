"""One worker of an instance dies: the other one serves, and it is restarted."""

from __future__ import annotations

import os
import signal
from time import monotonic, sleep

from tests.faults.ground import Ground, processes, wait_until
from tests.faults.load import Load, Outcomes, failures, recovered_after_s, report
from tests.faults.seed import METRIC


def test_a_killed_worker_fails_only_its_requests(ground: Ground) -> None:
    parent = ground.pid("dataplane")
    workers = set(processes(parent))
    with Load(ground.port, ground.question) as load, Outcomes(ground.port, "wk", METRIC) as sent:
        sleep(0.5)
        killed_at = monotonic()
        os.kill(min(workers), signal.SIGKILL)
        wait_until(lambda: load.is_well(killed_at), 20, "all requests succeed")
        wait_until(lambda: len(set(processes(parent)) - {min(workers)}) == 2, 20, "two workers")
    report("One worker of two killed", load, killed_at)

    assert len(workers) == 2
    # Each client has one connection and may lose only the request in flight on it.
    assert sum(failures(load.answers).values()) <= load.threads
    assert recovered_after_s(load.answers, killed_at) < 1
    ground.expect_outcomes("wk", sent.accepted)


def test_a_stopped_worker_is_killed_and_its_connections_come_back(ground: Ground) -> None:
    parent = ground.pid("dataplane")
    victim = min(processes(parent))
    with Load(ground.port, ground.question) as load:
        sleep(0.5)
        stopped_at = monotonic()
        os.kill(victim, signal.SIGSTOP)
        gone_after_s = wait_until(lambda: victim not in processes(parent), 20, "it is killed")
        gone_at = monotonic()
        wait_until(lambda: load.is_well(gone_at), 20, "all requests succeed")
        wait_until(lambda: len(processes(parent)) == 2, 20, "two workers")
    report("One worker of two stopped", load, stopped_at)

    # INTERLOCK_WORKER_SILENT_S is 1.5: clients of a hanging worker wait that long; the rest is
    # tolerance for a busy machine.
    assert gone_after_s < 4
    assert recovered_after_s(load.answers, gone_at) < 1


def test_a_killed_parent_fails_no_request(ground: Ground) -> None:
    """Its workers keep serving until the workers of the next parent take over."""
    workers = set(processes(ground.pid("dataplane")))
    with Load(ground.port, ground.question) as load, Outcomes(ground.port, "pa", METRIC) as sent:
        sleep(0.5)
        killed_at = ground.kill("dataplane")
        wait_until(lambda: not workers & set(processes()), 60, "the old workers have left")
        left_at = monotonic()
        wait_until(lambda: load.is_well(left_at), 20, "all requests succeed")
        wait_until(lambda: len(processes(ground.pid("dataplane"))) == 2, 20, "two workers")
    report("The data plane's parent killed", load, killed_at)

    assert failures(load.answers) == {}
    ground.expect_outcomes("pa", sent.accepted)
