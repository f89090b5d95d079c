"""The cost of a start is counted once, with the processes that ended before ready."""

from __future__ import annotations

from bench.start import Start, _name, _used_s
from embedded.resource_usage import Usage


def usage(command: str, cpu_s: float, children_cpu_s: float) -> Usage:
    return Usage(1, command, cpu_s, children_cpu_s, 0, 0)


def test_sessions_that_ended_count_and_commands_only_in_their_own_row() -> None:
    supervisor = usage("python -m embedded up --only dataplane,postgres", 1.0, 5.0)
    postgres = usage("/bin/postgres -D /x", 0.5, 2.0)
    assert (_used_s(supervisor), _used_s(postgres)) == (1.0, 2.5)
    start = Start(1.0, [supervisor, postgres], [], supervisor.children_cpu_s, 0.0)
    assert start.cpu_s == 8.5


def test_the_process_that_reads_large_requests_is_no_parent() -> None:
    assert _name(usage("python -m dataplane.reading.process", 0, 0)) == "data plane, reading"
