"""The entry script, without a set-up."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from embedded.state import ROOT

COMMANDS = ("up", "demo", "setup", "test", "check", "bench", "fuzz", "debs", "help")


def run(*arguments: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "run"), *arguments],
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_help_lists_every_command_from_any_directory(tmp_path: Path) -> None:
    done = run("help", cwd=tmp_path)

    assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)


def test_without_a_command_it_prints_the_help() -> None:
    assert run().stdout == run("help").stdout


def test_an_unknown_command_is_refused() -> None:
    done = run("launch")

    assert done.returncode == 2
    assert "no such command: launch" in done.stderr


@pytest.mark.parametrize("python", ["/bin/false", "/nowhere/python3"])
def test_an_unsuitable_python_is_refused(python: str) -> None:
    done = run("status", INTERLOCK_PYTHON=python)

    assert done.returncode == 1
    assert f"INTERLOCK_PYTHON={python} is not a Python 3.11 or 3.12" in done.stderr


def test_without_python_it_prints_what_to_install(tmp_path: Path) -> None:
    for tool in ("sh", "dirname"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")

    done = run("up", PATH=str(tmp_path), INTERLOCK_PYTHON="")

    assert done.returncode == 1
    assert "apt-get install python3 python3-venv" in done.stderr


def test_it_is_a_posix_script() -> None:
    text = (ROOT / "run").read_text()

    assert text.startswith("#!/bin/sh\n")
    assert subprocess.run(["sh", "-n", ROOT / "run"], check=False).returncode == 0
    assert "[[" not in text
    assert "local " not in text


def test_make_only_calls_the_script() -> None:
    lines = (ROOT / "Makefile").read_text().splitlines()

    assert [line for line in lines if line.startswith("\t")] == ["\t@./run $@"]


@pytest.mark.parametrize(("tests", "checks"), [(0, 0), (1, 0), (0, 1)])
def test_ci_fails_with_tests_or_checks_and_ends_with_the_summary(
    tmp_path: Path, tests: int, checks: int
) -> None:
    summary = "===== 213 passed, 1 deselected in 93.20s (0:01:33) ====="
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "run").write_text(
        "#!/bin/sh\n"
        "case $1 in\n"
        "setup) ;;\n"
        f"test) echo 'all in 3s'; echo '{summary}'; exit {tests} ;;\n"
        f"check) echo 'checked in 2 files'; exit {checks} ;;\n"
        "esac\n"
    )
    (tmp_path / "run").chmod(0o755)

    done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True, check=False)

    assert done.returncode == (1 if tests or checks else 0)
    assert done.stdout.splitlines()[-1] == summary
    assert "checked in 2 files" in done.stdout
