from __future__ import annotations

import io
from pathlib import Path

import pytest

from embedded.logs import Console, PartLog


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_each_line_has_the_name_of_its_part(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(stream=stream)
    console.register(["web", "dataplane"])
    log = PartLog("web", tmp_path, console)

    log.feed(b"one\ntw")
    log.feed(b"o\nrest")
    log.close()

    expected = "web       | one\nweb       | two\nweb       | rest\n"
    assert stream.getvalue() == expected
    assert log.path.read_bytes() == b"one\ntwo\nrest\n"


def test_only_terminals_get_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)

    assert Console(stream=Terminal()).coloured
    assert not Console(stream=io.StringIO()).coloured


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    assert not Console(stream=Terminal()).coloured


def test_a_quiet_console_writes_the_parts_output_only_to_files(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(quiet=True, stream=stream)
    log = PartLog("web", tmp_path, console)

    log.feed(b"line\n")
    log.close()

    assert stream.getvalue() == ""
    assert log.path.read_bytes() == b"line\n"


def test_a_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedded.logs.FILE_BYTES_MAX", 1_000)
    log = PartLog("web", tmp_path, Console(quiet=True, stream=io.StringIO()))

    log.feed((b"x" * 99 + b"\n") * 50)
    log.close()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["web.log", "web.log.1"]
    assert all(path.stat().st_size <= 1_200 for path in tmp_path.iterdir())


def test_an_incomplete_line_is_bounded(tmp_path: Path) -> None:
    log = PartLog("web", tmp_path, Console(quiet=True, stream=io.StringIO()))

    log.feed(b"x" * 20_000)

    assert log.path.stat().st_size > 16_384
    log.close()
