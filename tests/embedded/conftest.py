"""Runs real child processes under a supervisor; none outlives its test."""

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
    """Return a function that creates a supervisor; `supervisor.console.stream` has its output."""
    supervisors: list[Supervisor] = []

    def make(*parts: Part, **settings: float) -> Supervisor:
        console = Console(stream=io.StringIO())
        record = ProcessRecord(tmp_path / "processes.json")
        supervisors.append(
            Supervisor(parts, logs=tmp_path, console=console, record=record, **settings)
        )
        return supervisors[-1]

    yield make
    for supervisor in supervisors:
        supervisor.kill()
        await supervisor.stop()
