"""Where the parts' output goes: the terminal, a coloured name before each line, and a file each."""

from __future__ import annotations

import collections
import os
import sys
from pathlib import Path
from typing import BinaryIO, TextIO

FILE_BYTES_MAX = 10_000_000
LINE_BYTES_MAX = 16_384
TAIL_LINES = 30
COLOURS = (36, 32, 35, 34, 33, 96, 92, 95, 94, 93)


class Console:
    """The terminal. `quiet` shows only what the supervisor itself says."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.quiet = quiet
        self.stream = stream or sys.stderr
        self.coloured = self.stream.isatty() and not os.environ.get("NO_COLOR")
        self.colour_of: dict[str, int] = {}
        self.width = len("interlock")

    def register(self, names: list[str]) -> None:
        """Give each part its colour, and all of them one column."""
        self.width = max(self.width, *map(len, names))
        for index, name in enumerate(names):
            self.colour_of[name] = COLOURS[index % len(COLOURS)]

    def say(self, text: str) -> None:
        """Say something of the stack's own."""
        self._write("interlock", text, colour=1)

    def complain(self, text: str) -> None:
        """Say something that a person should not miss."""
        self._write("interlock", text, colour=31)

    def relay(self, name: str, line: str) -> None:
        """Pass on a line of a part's output."""
        if not self.quiet:
            self._write(name, line, colour=self.colour_of.get(name, 0))

    def _write(self, name: str, text: str, colour: int) -> None:
        prefix = f"{name:<{self.width}} |"
        if self.coloured:
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        try:
            for line in text.split("\n"):
                self.stream.write(f"{prefix} {line}\n")
            self.stream.flush()
        except OSError:
            # A terminal that went away must not take the stack with it.
            self.quiet = True


class PartLog:
    """One part's output: a bounded file, the last lines in memory, and the console."""

    def __init__(self, name: str, directory: Path, console: Console) -> None:
        self.name = name
        self.console = console
        self.path = directory / f"{name}.log"
        # Set `seen` when a line holds this text; empty: nothing is looked for.
        self.watched_for = ""
        self.seen = False
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._partial = b""
        self._file: BinaryIO = self.path.open("ab")
        self._size_bytes = self.path.stat().st_size

    def feed(self, data: bytes) -> None:
        """Take output as it comes; whole lines go on, the rest waits for its end."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._partial) > LINE_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Pass on a line that has no end."""
        if self._partial:
            self._line(self._partial)
            self._partial = b""

    def close(self) -> None:
        self.flush()
        self._file.close()

    def _line(self, line: bytes) -> None:
        if self._size_bytes > FILE_BYTES_MAX:
            self._rotate()
        self._size_bytes += self._file.write(line + b"\n")
        self._file.flush()
        text = line.decode("utf-8", "replace").rstrip("\r")
        self.tail.append(text)
        if self.watched_for and self.watched_for in text:
            self.seen = True
        self.console.relay(self.name, text)

    def _rotate(self) -> None:
        self._file.close()
        self.path.replace(self.path.with_suffix(".log.1"))
        self._file = self.path.open("ab")
        self._size_bytes = 0
