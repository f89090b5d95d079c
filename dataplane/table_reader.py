"""Reads a routing table in slices, so that a large one never holds the event loop.

What did not change since the applied table is known by its bytes and taken over unparsed, as the
very same objects; so what changed is known as well, and nobody else need look at all models.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from contract.deltas import assemble_table, changed_lines, decode_delta
from contract.routing import (
    Cluster,
    ModelRoute,
    Name,
    RoutingTable,
    TableError,
    check_frame,
    check_model,
    decode_models,
    decode_unchecked,
    split_table,
)
from dataplane.spool import sync_folder

log = logging.getLogger("interlock.dataplane")

# How long a slice may take, and how many steps are taken between two looks at the clock.
SLICE_S = 0.001
STEPS = 8
# New lines that are parsed together, and things that are let go of together.
LINES_AT_ONCE = 32
DROPPED_AT_ONCE = 100

Entry = tuple[Name, ModelRoute]
Lines = dict[bytes, Entry]


@dataclass(frozen=True, slots=True)
class Reading:
    """A table that was read and checked, and what it changes.

    `changed` are the models that are new or different, or whose cluster is; `removed` those that
    the applied table has and this one has not. `gone` are the (model, version) that are served no
    more. `lines` are for the next reading.
    """

    table: RoutingTable
    changed: tuple[Name, ...]
    removed: tuple[Name, ...]
    gone: list[tuple[Name, str]]
    lines: Lines


class Pace:
    """Lets the loop turn whenever a slice of time is used up."""

    def __init__(self) -> None:
        # Steps since the last look at the clock.
        self._steps = 0
        # When the present slice ends.
        self._until = perf_counter() + SLICE_S

    def is_due(self) -> bool:
        """Count a step; True when it is time to `rest`."""
        self._steps += 1
        return self._steps % STEPS == 0 and perf_counter() >= self._until

    async def rest(self) -> None:
        await asyncio.sleep(0)
        self._until = perf_counter() + SLICE_S


class TableReader:
    """Reads tables against the one that is applied."""

    def __init__(self) -> None:
        # The lines of the applied table, and the models that they stand for.
        self._known: Lines = {}

    async def read(self, data: bytes, applied: RoutingTable | None) -> Reading:
        """Parse and check a table. Raises TableError."""
        pace = Pace()
        parts = split_table(data)
        if parts is None:
            table = decode_unchecked(data)
            lines: Lines = {}
        else:
            frame, found = parts
            models, lines = await self._read_models(found, pace)
            table = msgspec.structs.replace(decode_unchecked(frame), models=models)
        changed = await _changed(table, applied, pace)
        removed = tuple(applied.models.keys() - table.models.keys()) if applied is not None else ()
        gone: list[tuple[Name, str]] = []
        for name in (*changed, *removed):
            if (route := table.models.get(name)) is not None:
                check_model(name, route, table.clusters)
            gone += gone_versions(name, applied, table)
            if pace.is_due():
                await pace.rest()
        check_frame(table)
        return Reading(table, changed, removed, gone, lines)

    async def assemble_table(self, data: bytes) -> bytes:
        """Return the table that an encoded delta makes of the applied one. Raises TableError."""
        delta = decode_delta(data)
        pace = Pace()
        lines = changed_lines(delta)
        left_out = {*lines, *delta.removed}
        for line, (name, _) in self._known.items():
            if name not in left_out:
                lines[name] = line
            if pace.is_due():
                await pace.rest()
        return assemble_table(delta, (lines[name] for name in sorted(lines)))

    def keep(self, reading: Reading) -> Lines:
        """Remember the lines of a table that was applied; return what was remembered before."""
        before, self._known = self._known, reading.lines
        return before

    async def _read_models(
        self, found: Iterator[bytes], pace: Pace
    ) -> tuple[dict[Name, ModelRoute], Lines]:
        known = self._known
        models: dict[Name, ModelRoute] = {}
        lines: Lines = {}
        fresh: list[bytes] = []
        for line in found:
            entry = known.get(line)
            if entry is not None:
                lines[line] = entry
                models[entry[0]] = entry[1]
            else:
                fresh.append(line)
                if len(fresh) >= LINES_AT_ONCE:
                    _parse(fresh, models, lines)
                    fresh = []
            if pace.is_due():
                await pace.rest()
        _parse(fresh, models, lines)
        return models, lines


def _parse(fresh: list[bytes], models: dict[Name, ModelRoute], lines: Lines) -> None:
    """Parse lines together. Raises TableError."""
    found = decode_models(b",".join(fresh))
    models.update(found)
    if len(found) == len(fresh):
        # In any other case some names came twice, and the lines are not worth remembering.
        lines.update(zip(fresh, found.items(), strict=True))


async def let_go(*things: dict[Any, Any]) -> None:
    """Empty large dictionaries that nobody reads any more, a little at a time."""
    for thing in things:
        while thing:
            for _ in range(min(len(thing), DROPPED_AT_ONCE)):
                thing.popitem()
            await asyncio.sleep(0)


async def _changed(
    table: RoutingTable, applied: RoutingTable | None, pace: Pace
) -> tuple[Name, ...]:
    before = applied.models if applied is not None else {}
    moved = _moved(table.clusters, applied.clusters) if applied is not None else set()
    changed = []
    for name, route in table.models.items():
        old = before.get(name)
        is_same = old is route or old == route
        if not is_same or (moved and any(v.cluster in moved for v in route.versions.values())):
            changed.append(name)
        if pace.is_due():
            await pace.rest()
    return tuple(changed)


def gone_versions(
    name: Name, before: RoutingTable | None, after: RoutingTable
) -> list[tuple[Name, str]]:
    """Return the versions of the model `name` that `before` served and `after` does not."""
    old = before.models.get(name) if before is not None else None
    if old is None:
        return []
    new = after.models.get(name)
    kept = new.versions if new is not None else {}
    return [(name, version) for version in old.versions if version not in kept]


def _moved(after: dict[Name, Cluster], before: dict[Name, Cluster]) -> set[Name]:
    return {n for n in after.keys() | before.keys() if after.get(n) != before.get(n)}


class TableFile:
    """The last good table on disk, replaced whole or not at all."""

    def __init__(self, path: Path) -> None:
        # The file; a temporary one is written beside it.
        self._path = path

    async def load(self, reader: TableReader) -> Reading | None:
        """Return the stored table, or None where there is none that can be used."""
        try:
            return await reader.read(self._path.read_bytes(), None)
        except FileNotFoundError:
            return None
        except (OSError, TableError) as error:
            log.warning("table.unreadable: %s", error)
            return None

    def store(self, data: bytes) -> None:
        """Write, sync, rename; the workers of an instance share the file. Raises OSError."""
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._path)
        sync_folder(self._path.parent)
