"""Runs real child processes under a supervisor, and sees to it that none outlives its test."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from embedded.logs import Console
from embedded.part import Part
from embedded.stale_processes import ProcessRecord
from embedded.supervisor import Supervisor

Supervise = Callable[..., Supervisor]


@pytest.fixture
async def supervise(tmp_path: Path) -> AsyncIterator[Supervise]:
    """Makes a supervisor of the given parts; what it says is in `supervisor.console.stream`."""
    made: list[Supervisor] = []

    def make(*parts: Part, **settings: float) -> Supervisor:
        console = Console(stream=io.StringIO())
        record = ProcessRecord(tmp_path / "processes.json")
        made.append(Supervisor(parts, logs=tmp_path, console=console, record=record, **settings))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.kill()
        await supervisor.stop()
