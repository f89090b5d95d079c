"""How commands are added to the parser, and what is common to what they take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from cli.client import Client

Command = Callable[[Client, argparse.Namespace], int]


def add_command(
    commands: Any, name: str, command: Command, told: str, *positional: str
) -> argparse.ArgumentParser:
    """Add a command with its positional arguments; return its parser for more of them."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=told, description=told)
    for argument in positional:
        parser.add_argument(argument)
    parser.set_defaults(command=command)
    return parser


def add_group(commands: Any, name: str, told: str, listing: Command | None = None) -> Any:
    """Add a command that has commands of its own; alone it does `listing`, if there is one."""
    parser = commands.add_parser(name, help=told, description=told)
    if listing is not None:
        parser.set_defaults(command=listing)
    return parser.add_subparsers(required=listing is None, metavar="ACTION")


def add_overrides(
    parser: argparse.ArgumentParser,
    told: str = "start despite a quarantine, signature or freeze; repeatable",
) -> None:
    """Add `--override`, repeatable; the server knows which there are."""
    parser.add_argument("--override", action="append", default=[], metavar="WHAT", help=told)


def segment(name: str) -> str:
    """Return a name as one segment of a path."""
    return quote(name, safe="")
