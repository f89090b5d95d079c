"""`interlock serving` and `history`: what served a model when, and who decided it."""

from __future__ import annotations

import argparse
from typing import Any

from cli.client import EXIT_OK, Client
from cli.parsing import add_command, segment
from cli.show import show_json, show_rows

COLUMNS = ["at", "stable", "beside", "actor", "reason"]


def add_serving(commands: Any) -> None:
    """Add `serving` and `history`."""
    told = "tell what serves a model, or served it at an instant, and who decided it"
    serving = add_command(commands, "serving", serving_at, told, "model")
    zoned = "2026-11-25T14:05:00Z or …+02:00"
    serving.add_argument("--at", metavar="T", help=f"an instant with its zone, {zoned}")
    told = "list all changes of how a model was served, the latest first"
    add_command(commands, "history", history_of, told, "model")


def serving_at(client: Client, options: argparse.Namespace) -> int:
    asked = {"at": options.at} if options.at is not None else {}
    change = client.get(f"models/{segment(options.model)}/serving/", **asked)
    if options.json:
        return show_json(change)
    beside = f", beside it {told}" if (told := _beside(change)) else ""
    print(f"{options.model}: stable {change['stable'] or 'none'}{beside}")
    print(f"since {change['at']} by {change['actor']}: {change['reason']}")
    decider = change["decided_by"]
    if decider["kind"]:
        print(f"decided by {decider['kind']} {decider['id']}")
    return EXIT_OK


def history_of(client: Client, options: argparse.Namespace) -> int:
    rows = client.pages(f"models/{segment(options.model)}/serving-history/")
    if options.json:
        return show_json(rows)
    return show_rows(options, [{**row, "beside": _beside(row)} for row in rows], COLUMNS)


def _beside(change: dict[str, Any]) -> str:
    """Tell in short what else got requests, or copies of them."""
    split, shadow = change["split"], change["shadow"]
    told = []
    if split and split["kind"] == "canary":
        told.append(f"canary {split['version']} at {split['weight_bp'] / 100:g} %")
    elif split:
        told.append(f"{split['kind']} {split['id']}")
    if shadow:
        told.append(f"shadow {shadow['version']} of {shadow['share_bp'] / 100:g} %")
    return ", ".join(told)
