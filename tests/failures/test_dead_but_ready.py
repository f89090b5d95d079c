"""A crashed Python backend is never restarted, responds 500 after seconds, and reports READY.

Here only predictions count: the circuit of that replica opens after a few calls, the other replica
serves, and after the control plane has reloaded the version the replica gets traffic again.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.faults.artifact import write_artifact
from tests.faults.ground import wait_until
from tests.faults.load import Load, Question, failures, report
from tests.faults.pair import MODEL, pair

CLIENTS = 16


@pytest.mark.e2e
def test_a_dead_but_ready_replica_gets_no_traffic_until_it_is_reloaded(tmp_path: Path) -> None:
    question = Question(write_artifact(tmp_path / "flowers.onnx"))
    with (
        pair(tmp_path) as both,
        Load(both.port, question, model=MODEL, per_s=400, threads=CLIENTS) as load,
    ):
        both.one.wait_for_traffic(20)
        died_at = monotonic()
        os.kill(both.one.stub(), signal.SIGKILL)
        wait_until(both.open_circuits, 20, "the circuit opens")
        opened_at, (circuit,) = monotonic(), both.open_circuits()
        assert both.one.address in circuit
        assert both.one.says_ready()
        sleep(0.5)
        both.one.reload()
        both.one.wait_for_traffic(20)
    report("A replica dead but ready", load, died_at)
    # Requests in flight to the dead replica time out. Where other work keeps the cores busy, some
    # clients send a second one before the first ones have timed out (22 with three test runs on two
    # cores); no later request is sent to it.
    assert failures(load.answers).keys() <= {"504 deadline_exceeded"}
    assert sum(failures(load.answers).values()) <= 2 * CLIENTS
    assert failures(load.since(opened_at)) == {}
