"""One Triton of two is killed or stopped: no request fails, and it gets traffic again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from time import monotonic, sleep

import pytest

from tests.faults.artifact import write_artifact
from tests.faults.load import Load, Question, failures, report
from tests.faults.pair import MODEL, Pair, pair

CLIENTS = 16
PER_S = 400
RETURNS_WITHIN_S = 20


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair(tmp_path_factory.mktemp("pair")) as both_servers:
        yield both_servers


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Question:
    return Question(write_artifact(tmp_path_factory.mktemp("artifact") / "flowers.onnx"))


def test_a_killed_triton_fails_no_request_and_gets_traffic_again(
    both: Pair, question: Question
) -> None:
    with Load(both.port, question, model=MODEL, per_s=PER_S, threads=CLIENTS) as load:
        both.one.wait_for_traffic(RETURNS_WITHIN_S)
        killed_at = monotonic()
        os.kill(both.one.pid(), signal.SIGKILL)
        sleep(1.0)
        both.one.wait_for_traffic(RETURNS_WITHIN_S)
    report("One Triton of two killed", load, killed_at)
    assert failures(load.answers) == {}


def test_a_triton_stopped_for_five_seconds_fails_only_requests_in_flight_and_gets_traffic_again(
    both: Pair, question: Question
) -> None:
    with Load(both.port, question, model=MODEL, per_s=PER_S, threads=CLIENTS) as load:
        both.two.wait_for_traffic(RETURNS_WITHIN_S)
        pid, stopped_at = both.two.pid(), monotonic()
        os.kill(pid, signal.SIGSTOP)
        sleep(5.0)
        os.kill(pid, signal.SIGCONT)
        back_at = monotonic()
        both.two.wait_for_traffic(RETURNS_WITHIN_S)
    report("One Triton of two stopped for 5 s", load, stopped_at)
    assert failures(load.answers).keys() <= {"504 deadline_exceeded"}
    assert sum(failures(load.answers).values()) <= 3 * CLIENTS
    assert failures(load.since(back_at)) == {}
