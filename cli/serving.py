"""`interlock serving` and `history` print which versions served a model, when, and who decided."""

from __future__ import annotations

import argparse
from typing import Any

from cli.client import EXIT_OK, Client
from cli.parsing import add_command, segment
from cli.show import show_json, show_rows

COLUMNS = ["at", "stable", "beside", "actor", "reason"]


def add_serving(commands: Any) -> None:
    """Add `serving` and `history`."""
    help_text = "print which versions serve a model now or at a past time, and who decided it"
    serving = add_command(commands, "serving", serving_at, help_text, "model")
    zoned = "2026-11-25T14:05:00Z or …+02:00"
    serving.add_argument("--at", metavar="T", help=f"ISO 8601 with a time zone, such as {zoned}")
    help_text = "list all changes of a model's serving, latest first"
    add_command(commands, "history", history_of, help_text, "model")


def serving_at(client: Client, options: argparse.Namespace) -> int:
    query = {"at": options.at} if options.at is not None else {}
    change = client.get(f"models/{segment(options.model)}/serving/", **query)
    if options.json:
        return show_json(change)
    others = _other_versions(change)
    beside = f", beside it {others}" if others else ""
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
    return show_rows(options, [{**row, "beside": _other_versions(row)} for row in rows], COLUMNS)


def _other_versions(change: dict[str, Any]) -> str:
    """Return the versions besides stable that received requests or copies of them."""
    split, shadow = change["split"], change["shadow"]
    versions = []
    if split and split["kind"] == "canary":
        versions.append(f"canary {split['version']} at {split['weight_bp'] / 100:g} %")
    elif split:
        versions.append(f"{split['kind']} {split['id']}")
    if shadow:
        versions.append(f"shadow {shadow['version']} of {shadow['share_bp'] / 100:g} %")
    return ", ".join(versions)
