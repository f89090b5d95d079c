"""The supervisor with real processes: shell scripts that start, crash, and ignore signals."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from embedded.part import EX_TEMPFAIL, Part, StackError
from embedded.supervisor import Supervisor, backoff_s
from tests.embedded.conftest import Supervise

LINGER = "while :; do sleep 0.05; done"


def shell(name: str, script: str, **settings: object) -> Part:
    return Part(name=name, argv=("sh", "-c", script), env=dict(os.environ), **settings)  # type: ignore[arg-type]


def recording(name: str, diary: Path, **settings: object) -> Part:
    """Return a part that appends its start and its end to `diary`."""
    script = f"trap 'echo {name} ends >> {diary}; exit 0' TERM; echo {name} starts >> {diary};"
    return shell(name, f"{script} echo up; {LINGER}", ready_line="up", **settings)


def output_of(supervisor: Supervisor) -> str:
    return cast(io.StringIO, supervisor.console.stream).getvalue()


def lives(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


def test_delays_double_up_to_a_maximum() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 4, 100)] == [0.5, 1.0, 2.0, 4.0, 30.0]


async def test_it_starts_in_order_and_stops_in_reverse(
    supervise: Supervise, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    supervisor = supervise(
        recording("a", diary),
        recording("b", diary, needs=("a",)),
        recording("c", diary, needs=("b",)),
    )

    await supervisor.start()
    await supervisor.stop()

    assert diary.read_text().split("\n")[:6] == [
        *("a starts", "b starts", "c starts"),
        *("c ends", "b ends", "a ends"),
    ]


async def test_a_part_stops_before_the_part_that_it_reports_to(
    supervise: Supervise, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    supervisor = supervise(
        recording("early", diary, reports_to=("late",)), recording("late", diary)
    )

    await supervisor.start()
    await supervisor.stop()

    assert diary.read_text().split("\n")[2:4] == ["early ends", "late ends"]


async def test_it_restarts_a_crashed_part_and_leaves_its_dependants_alone(
    supervise: Supervise, tmp_path: Path
) -> None:
    diary = tmp_path / "diary"
    supervisor = supervise(recording("base", diary), recording("user", diary, needs=("base",)))
    await supervisor.start()
    base, user = supervisor.runners["base"], supervisor.runners["user"]
    assert base.process is not None
    assert user.process is not None
    user_pid = user.process.pid

    base.process.kill()
    await until(lambda: base.restarts == 1 and base.process is not None)

    assert "base ended by SIGKILL; restarting in 0.5 s" in output_of(supervisor)
    assert user.process.pid == user_pid


async def test_it_restarts_a_killed_part_whose_child_holds_its_output_open(
    supervise: Supervise, tmp_path: Path
) -> None:
    children = tmp_path / "children"
    script = f"sleep 30 & echo $! >> {children}; echo up; wait"
    supervisor = supervise(shell("web", script, ready_line="up"))
    await supervisor.start()
    process = supervisor.runners["web"].process
    assert process is not None

    process.kill()
    await until(lambda: supervisor.runners["web"].restarts == 1)
    await until(lambda: len(children.read_text().split()) == 2)
    await supervisor.stop()

    assert not any(lives(int(pid)) for pid in children.read_text().split())


async def test_a_part_that_dies_before_it_was_ready_fails_the_start(
    supervise: Supervise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedded.supervisor.BACKOFF_FIRST_S", 0.01)
    supervisor = supervise(shell("sick", "echo the reason; exit 7", ready_line="never"))

    with pytest.raises(StackError, match=r"sick ended with exit code 7(.|\n)*the reason"):
        await supervisor.start()

    assert output_of(supervisor).count("restarting") == 2


@pytest.mark.parametrize("is_command", [False, True])
async def test_a_part_that_repeatedly_exceeds_its_limit_fails_the_start(
    supervise: Supervise, monkeypatch: pytest.MonkeyPatch, is_command: bool
) -> None:
    monkeypatch.setattr("embedded.supervisor.BACKOFF_FIRST_S", 0.01)
    how = {"once": True} if is_command else {"ready_line": "never"}
    slow = shell("slow", f"echo waiting; {LINGER}", **how)
    supervisor = supervise(slow, start_limit_s=0.3)

    with pytest.raises(StackError, match=r"slow ended by SIGKILL(.|\n)*waiting"):
        await supervisor.start()

    assert output_of(supervisor).count("slow is not ready after 0.3 s") == 3
    # The message contains the remedy.
    assert "set INTERLOCK_START_LIMIT_S=0.6, or 0 for no limit" in output_of(supervisor)


async def test_a_late_part_is_restarted_without_effect_on_others(
    supervise: Supervise, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("embedded.supervisor.BACKOFF_FIRST_S", 0.01)
    second = f"test -e {tmp_path}/tried && echo up; touch {tmp_path}/tried; {LINGER}"
    other = shell("other", f"echo up; {LINGER}", ready_line="up")
    supervisor = supervise(other, shell("late", second, ready_line="up"), start_limit_s=0.5)

    await supervisor.start()

    assert supervisor.runners["late"].restarts == 1
    assert supervisor.runners["other"].restarts == 0


async def test_a_limit_counts_from_the_readiness_of_the_dependencies(
    supervise: Supervise, tmp_path: Path
) -> None:
    """A data plane starts at the same time as the migrations and waits for the first table."""
    planes = f"while ! test -e {tmp_path}/table; do sleep 0.05; done; echo up; {LINGER}"
    supervisor = supervise(
        shell("plane", planes, ready_line="up", ready_after=("migrate",)),
        shell("migrate", f"sleep 1; touch {tmp_path}/table", once=True),
        start_limit_s=0.0,
    )
    # The command takes 1 s; without the rule the other part would exceed its limit of 0.5 s.
    supervisor.runners["plane"].start_limit_s = 0.5

    await supervisor.start()

    assert supervisor.runners["plane"].restarts == 0


async def test_it_prints_every_few_seconds_what_it_waits_for(
    supervise: Supervise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedded.supervisor.PROGRESS_EVERY_S", 0.2)

    async def missing() -> str:
        return (
            "" if output_of(supervisor).count("waiting for") >= 2 else "/ready: not listening yet"
        )

    supervisor = supervise(
        shell("base", LINGER, ready=missing),
        shell("user", LINGER, needs=("base",)),
        shell("plane", LINGER, ready=missing, ready_after=("user",)),
    )

    await supervisor.start()

    first = next(line for line in output_of(supervisor).split("\n") if "waiting for" in line)
    assert "base (for /ready: not listening yet, 0." in first
    assert "user (for base)" in first
    assert "plane (for user, 0." in first


async def test_a_command_with_a_temporary_failure_is_run_again(
    supervise: Supervise, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("embedded.supervisor.BACKOFF_FIRST_S", 0.01)
    script = f"test -e {tmp_path}/tried && exit 0; touch {tmp_path}/tried; exit {EX_TEMPFAIL}"
    supervisor = supervise(shell("selftest", script, once=True))

    await supervisor.start()

    assert supervisor.runners["selftest"].restarts == 1


async def test_a_failed_command_fails_the_start(supervise: Supervise) -> None:
    supervisor = supervise(
        shell("migrate", "echo no such table; exit 3", once=True),
        shell("web", LINGER, needs=("migrate",)),
    )

    with pytest.raises(StackError, match=r"migrate ended with exit code 3(.|\n)*no such table"):
        await supervisor.start()

    assert supervisor.runners["web"].process is None


async def test_a_successful_command_is_ready_for_its_dependants(
    supervise: Supervise, tmp_path: Path
) -> None:
    supervisor = supervise(
        shell("migrate", "exit 0", once=True), recording("web", tmp_path / "d", needs=("migrate",))
    )

    await supervisor.start()

    assert (tmp_path / "d").read_text() == "web starts\n"


async def test_a_background_part_does_not_delay_the_start(supervise: Supervise) -> None:
    supervisor = supervise(
        shell("registry", "exit 1", awaited=False), shell("web", f"echo up; {LINGER}")
    )

    await supervisor.start()
    await until(lambda: supervisor.runners["registry"].restarts >= 1)

    assert supervisor.runners["web"].ready.is_set()


async def test_a_failing_background_command_breaks_the_stack(supervise: Supervise) -> None:
    supervisor = supervise(
        shell("selftest", "echo wrong answers; exit 1", once=True, awaited=False)
    )

    await supervisor.start()

    with pytest.raises(StackError, match="wrong answers"):
        await asyncio.wait_for(supervisor.broken(), 5)


async def test_a_part_that_ignores_signals_is_killed_with_its_children(
    supervise: Supervise, tmp_path: Path
) -> None:
    script = (
        f"trap '' TERM; (trap '' TERM; {LINGER}) & echo $! > {tmp_path}/child; echo up; {LINGER}"
    )
    supervisor = supervise(shell("stubborn", script, ready_line="up", stop_within_s=0.3))
    await supervisor.start()
    process = supervisor.runners["stubborn"].process
    assert process is not None

    await supervisor.stop()

    assert "stubborn did not stop in time: killed" in output_of(supervisor)
    assert not lives(process.pid)
    await until(lambda: not lives(int((tmp_path / "child").read_text())))


async def test_kill_ends_everything_at_once(supervise: Supervise) -> None:
    part = shell("stubborn", f"trap '' TERM; echo up; {LINGER}", ready_line="up")
    supervisor = supervise(part)
    await supervisor.start()
    began = time.monotonic()

    supervisor.kill()
    await supervisor.stop()

    assert time.monotonic() - began < 2
