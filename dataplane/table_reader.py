"""Reads a routing table in slices, so that a large one does not block the event loop.

Parts that are the same as in the applied table are recognised by their bytes and reused without
parsing, as the same objects. The changes are therefore known as well, and no other module needs to
compare all models.
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

# Seconds of a slice, and steps between two looks at the clock.
SLICE_S = 0.001
STEPS = 8
# New lines that are parsed together, and objects that are released together.
LINES_AT_ONCE = 32
DROPPED_AT_ONCE = 100

Entry = tuple[Name, ModelRoute]
Lines = dict[bytes, Entry]


@dataclass(frozen=True, slots=True)
class Reading:
    """A table that was parsed and checked, and its changes.

    `changed` are models that are new or different, or whose cluster is; `removed` are models that
    only the applied table has. `removed_versions` are the (model, version) pairs that are no longer
    served. `lines` are for the next reading.
    """

    table: RoutingTable
    changed: tuple[Name, ...]
    removed: tuple[Name, ...]
    removed_versions: list[tuple[Name, str]]
    lines: Lines


class TimeSlice:
    """Yields to the event loop whenever a slice of time is used up."""

    def __init__(self) -> None:
        # Steps since the last look at the clock.
        self._steps = 0
        # When the present slice ends.
        self._until = perf_counter() + SLICE_S

    def is_due(self) -> bool:
        """Count a step; return True when it is time to `rest`."""
        self._steps += 1
        return self._steps % STEPS == 0 and perf_counter() >= self._until

    async def rest(self) -> None:
        await asyncio.sleep(0)
        self._until = perf_counter() + SLICE_S


class TableReader:
    """Reads tables, given the one that is applied."""

    def __init__(self) -> None:
        # The lines of the applied table, with their models.
        self._known: Lines = {}

    async def read(self, data: bytes, applied: RoutingTable | None) -> Reading:
        """Parse and check a table. Raises TableError."""
        time_slice = TimeSlice()
        parts = split_table(data)
        if parts is None:
            table = decode_unchecked(data)
            lines: Lines = {}
        else:
            frame, model_lines = parts
            models, lines = await self._read_models(model_lines, time_slice)
            table = msgspec.structs.replace(decode_unchecked(frame), models=models)
        changed = await _changed(table, applied, time_slice)
        removed = tuple(applied.models.keys() - table.models.keys()) if applied is not None else ()
        removed_pairs: list[tuple[Name, str]] = []
        for name in (*changed, *removed):
            if (route := table.models.get(name)) is not None:
                check_model(name, route, table.clusters)
            removed_pairs += removed_versions(name, applied, table)
            if time_slice.is_due():
                await time_slice.rest()
        check_frame(table)
        return Reading(table, changed, removed, removed_pairs, lines)

    async def assemble_table(self, data: bytes) -> bytes:
        """Return the table that an encoded delta makes of the applied one. Raises TableError."""
        delta = decode_delta(data)
        time_slice = TimeSlice()
        lines = changed_lines(delta)
        replaced = {*lines, *delta.removed}
        for line, (name, _) in self._known.items():
            if name not in replaced:
                lines[name] = line
            if time_slice.is_due():
                await time_slice.rest()
        return assemble_table(delta, (lines[name] for name in sorted(lines)))

    def keep(self, reading: Reading) -> Lines:
        """Remember the lines of a table that was applied; return the previous lines."""
        before, self._known = self._known, reading.lines
        return before

    async def _read_models(
        self, model_lines: Iterator[bytes], time_slice: TimeSlice
    ) -> tuple[dict[Name, ModelRoute], Lines]:
        known = self._known
        models: dict[Name, ModelRoute] = {}
        lines: Lines = {}
        fresh: list[bytes] = []
        for line in model_lines:
            entry = known.get(line)
            if entry is not None:
                lines[line] = entry
                models[entry[0]] = entry[1]
            else:
                fresh.append(line)
                if len(fresh) >= LINES_AT_ONCE:
                    _parse(fresh, models, lines)
                    fresh = []
            if time_slice.is_due():
                await time_slice.rest()
        _parse(fresh, models, lines)
        return models, lines


def _parse(fresh: list[bytes], models: dict[Name, ModelRoute], lines: Lines) -> None:
    """Parse lines together. Raises TableError."""
    parsed = decode_models(b",".join(fresh))
    models.update(parsed)
    if len(parsed) == len(fresh):
        # Otherwise some names were repeated, and the lines are not worth remembering.
        lines.update(zip(fresh, parsed.items(), strict=True))


async def release_slowly(*things: dict[Any, Any]) -> None:
    """Empty large dictionaries that are no longer used, a little at a time."""
    for thing in things:
        while thing:
            for _ in range(min(len(thing), DROPPED_AT_ONCE)):
                thing.popitem()
            await asyncio.sleep(0)


async def _changed(
    table: RoutingTable, applied: RoutingTable | None, time_slice: TimeSlice
) -> tuple[Name, ...]:
    before = applied.models if applied is not None else {}
    moved = _moved(table.clusters, applied.clusters) if applied is not None else set()
    changed = []
    for name, route in table.models.items():
        old = before.get(name)
        is_same = old is route or old == route
        if not is_same or (moved and any(v.cluster in moved for v in route.versions.values())):
            changed.append(name)
        if time_slice.is_due():
            await time_slice.rest()
    return tuple(changed)


def removed_versions(
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
    """The last good table on disk, replaced completely or not at all."""

    def __init__(self, path: Path) -> None:
        # The file; a temporary one is written beside it.
        self._path = path

    async def load(self, reader: TableReader) -> Reading | None:
        """Return the stored table, or None if there is none that can be used."""
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
