"""Writes the parts' output to the terminal, with a coloured name per line, and to a file each."""

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
    """The terminal; with `quiet` it shows only the supervisor's messages."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.quiet = quiet
        self.stream = stream or sys.stderr
        self.coloured = self.stream.isatty() and not os.environ.get("NO_COLOR")
        self.colour_of: dict[str, int] = {}
        self.width = len("interlock")

    def register(self, names: list[str]) -> None:
        """Assign a colour to each part, and set the width of the column of names."""
        self.width = max(self.width, *map(len, names))
        for index, name in enumerate(names):
            self.colour_of[name] = COLOURS[index % len(COLOURS)]

    def print_line(self, text: str) -> None:
        """Print a message of the stack itself."""
        self._write("interlock", text, colour=1)

    def print_error(self, text: str) -> None:
        """Print an error message of the stack itself."""
        self._write("interlock", text, colour=31)

    def relay(self, name: str, line: str) -> None:
        """Print a line of a part's output."""
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
            # A closed terminal must not end the stack.
            self.quiet = True


class PartLog:
    """One part's output: a file of bounded size, the last lines in memory, and the console."""

    def __init__(self, name: str, directory: Path, console: Console) -> None:
        self.name = name
        self.console = console
        self.path = directory / f"{name}.log"
        # `has_matched` is set when a line contains this text; empty: no line is checked.
        self.expected_text = ""
        self.has_matched = False
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._partial = b""
        self._file: BinaryIO = self.path.open("ab")
        self._size_bytes = self.path.stat().st_size

    def feed(self, data: bytes) -> None:
        """Add output; complete lines are written, an incomplete one is kept."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._partial) > LINE_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write an incomplete line."""
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
        if self.expected_text and self.expected_text in text:
            self.has_matched = True
        self.console.relay(self.name, text)

    def _rotate(self) -> None:
        self._file.close()
        self.path.replace(self.path.with_suffix(".log.1"))
        self._file = self.path.open("ab")
        self._size_bytes = 0
