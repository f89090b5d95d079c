"""Functions that add commands, groups and shared options to the argument parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from cli.client import Client

Command = Callable[[Client, argparse.Namespace], int]


def add_command(
    commands: Any, name: str, command: Command, help_text: str, *positional: str
) -> argparse.ArgumentParser:
    """Add a command with its positional arguments; return its parser to add options to."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=help_text
    )
    for argument in positional:
        parser.add_argument(argument)
    parser.set_defaults(command=command)
    return parser


def add_group(commands: Any, name: str, help_text: str, listing: Command | None = None) -> Any:
    """Add a command with subcommands; without a subcommand it runs `listing`, if supplied."""
    parser = commands.add_parser(name, help=help_text, description=help_text)
    if listing is not None:
        parser.set_defaults(command=listing)
    return parser.add_subparsers(required=listing is None, metavar="ACTION")


def add_overrides(
    parser: argparse.ArgumentParser,
    help_text: str = "start despite a quarantine, signature or freeze; repeatable",
) -> None:
    """Add `--override`, which is repeatable; the server knows the valid values."""
    parser.add_argument("--override", action="append", default=[], metavar="WHAT", help=help_text)


def segment(name: str) -> str:
    """Return a name quoted as one segment of a URL path."""
    return quote(name, safe="")
