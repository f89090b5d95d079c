"""Two Tritons, of which one dies, hangs or becomes slow: no request fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from time import monotonic, sleep

import httpx
import pytest

from contract.routing import RoutingTable
from embedded.stack import Stack, running
from tests.faults.ground import BODY, Ground, processes, wait_until
from tests.faults.load import Load, failures, report
from tests.faults.planes import MODEL, SlowWay, misled, table
from tests.faults.seed import VERSIONS

SLOWER = 10
CLIENTS = 32


class Second:
    """Another Triton with the same versions."""

    def __init__(self, stack: Stack) -> None:
        self.address = f"127.0.0.1:{stack.ports['triton_http']}"
        self._supervisor = stack.pid

    def pid(self) -> int:
        """Return the server's pid, once it is back and responds for every version."""
        wait_until(lambda: self._pids(), 30, "the second Triton runs")
        for number in VERSIONS:
            url = f"http://{self.address}/v2/models/flowers.{number}/versions/{number}/infer"
            wait_until(lambda url=url: httpx.post(url, content=BODY).is_success, 30, url)
        return self._pids()[0]

    def _pids(self) -> list[int]:
        children = processes(self._supervisor)
        return [pid for pid, command in children.items() if "/tritonserver" in command]


@pytest.fixture(scope="module")
def second(shared: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Second]:
    shared.settle()
    directory = tmp_path_factory.mktemp("second")
    shared.copy_repository(directory / "triton")
    with running(directory, only={"triton"}) as stack:
        yield Second(stack)


def lose(
    ground: Ground, directory: Path, document: RoutingTable, pid: int, number: signal.Signals
) -> Load:
    """Load a data plane that serves `document`; send the process a signal, for 1.5 s."""
    with (
        misled(ground, directory, document) as (_, plane),
        Load(plane.port, ground.question, model=MODEL, threads=CLIENTS) as load,
    ):
        sleep(0.5)
        lost_at = monotonic()
        os.kill(pid, number)
        sleep(1.5)
        if number == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
    report(f"One Triton of two lost by {number.name}", load, lost_at)
    return load


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_canary_without_endpoints_falls_back_to_stable(
    ground: Ground, second: Second, tmp_path: Path, number: signal.Signals
) -> None:
    document = table(1, ground.triton, canary_on=(second.address,))

    load = lose(ground, tmp_path, document, second.pid(), number)

    assert failures(load.answers) == {}
    assert any(answer.fallback for answer in load.answers)


def test_a_killed_endpoint_of_two_fails_no_request(
    ground: Ground, second: Second, tmp_path: Path
) -> None:
    document = table(1, ground.triton, second.address)

    load = lose(ground, tmp_path, document, second.pid(), signal.SIGKILL)

    assert failures(load.answers) == {}


def test_a_stopped_endpoint_of_two_fails_only_requests_in_flight(
    ground: Ground, second: Second, tmp_path: Path
) -> None:
    document = table(1, ground.triton, second.address)

    load = lose(ground, tmp_path, document, second.pid(), signal.SIGSTOP)

    assert failures(load.answers).keys() <= {"504 deadline_exceeded"}
    assert sum(failures(load.answers).values()) <= CLIENTS


def test_a_stopped_endpoint_of_two_fails_no_request_with_hedging(
    ground: Ground, second: Second, tmp_path: Path
) -> None:
    document = table(1, ground.triton, second.address, hedge_after_ms=50)

    load = lose(ground, tmp_path, document, second.pid(), signal.SIGSTOP)

    assert failures(load.answers) == {}


def test_a_slow_triton_slows_requests_and_fails_none(ground: Ground, tmp_path: Path) -> None:
    with (
        closing(SlowWay(ground.triton)) as way,
        misled(ground, tmp_path, table(1, way.address)) as (_, plane),
        Load(plane.port, ground.question, model=MODEL, threads=CLIENTS) as load,
    ):
        sleep(1.0)
        usual_s = median(a.took_s for a in load.answers)
        slow_at, way.delay_s = monotonic(), SLOWER * usual_s
        sleep(1.5)
        slow_s = median(a.took_s for a in load.since(slow_at))
        way.delay_s, mended_at = 0.0, monotonic()
        sleep(1.0)
    report(f"Triton slower by {SLOWER} × ({usual_s * 1e3:.1f} ms)", load, slow_at)

    assert failures(load.answers) == {}
    assert not any(answer.fallback for answer in load.answers)
    assert slow_s < 4 * SLOWER * usual_s
    assert median(a.took_s for a in load.since(mended_at + 0.5)) < 4 * usual_s
