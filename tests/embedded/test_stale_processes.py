from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded.stale_processes import ProcessRecord, boot_id, end_leftovers, read_process


@pytest.fixture
def leader() -> Iterator[subprocess.Popen[bytes]]:
    """Start a session leader with a child; both ignore SIGTERM."""
    script = "trap '' TERM; (trap '' TERM; sleep 60) & echo up; wait"
    with subprocess.Popen(
        ["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def write_record(path: Path, pid: int, started: int, boot: str) -> ProcessRecord:
    path.write_text(json.dumps({"boot": boot, "processes": [[pid, started]]}))
    return ProcessRecord(path)


def test_it_reads_a_process() -> None:
    process = read_process(os.getpid())

    assert process is not None
    assert process.session == os.getsid(0)


def test_there_is_no_process_zero() -> None:
    assert read_process(0) is None


def test_it_ends_a_recorded_process_with_its_children(
    tmp_path: Path, leader: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedded.stale_processes.GRACE_S", 0.2)
    ProcessRecord(tmp_path / "record").add(leader.pid)

    ended = end_leftovers(ProcessRecord(tmp_path / "record"))

    assert ended >= 2
    assert leader.wait(5) == -9
    assert ProcessRecord(tmp_path / "record").leftovers() == []


def test_it_spares_a_process_with_a_reused_pid(
    tmp_path: Path, leader: subprocess.Popen[bytes]
) -> None:
    process = read_process(leader.pid)
    assert process is not None
    record = write_record(tmp_path / "record", leader.pid, process.started - 1, boot_id())

    assert record.leftovers() == []


def test_it_spares_everything_after_a_reboot(
    tmp_path: Path, leader: subprocess.Popen[bytes]
) -> None:
    process = read_process(leader.pid)
    assert process is not None
    record = write_record(tmp_path / "record", leader.pid, process.started, "another boot")

    assert record.leftovers() == []


def test_an_ended_part_is_not_searched(tmp_path: Path, leader: subprocess.Popen[bytes]) -> None:
    record = ProcessRecord(tmp_path / "record")
    record.add(leader.pid)

    record.discard(leader.pid)

    assert record.leftovers() == []


@pytest.mark.parametrize("text", ["", "{", '{"boot": 1}', '{"processes": [1]}'])
def test_a_damaged_record_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "record").write_text(text)

    assert ProcessRecord(tmp_path / "record").leftovers() == []
