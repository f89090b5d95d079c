"""`interlock models` and `versions` list, undeploy, archive, restore and delete them."""

from __future__ import annotations

import argparse
from typing import Any

from cli.client import EXIT_BAD_REQUEST, EXIT_OK, ApiError, Client
from cli.parsing import segment
from cli.show import show_json, show_rows

ACTIONS = {
    "undeploy": "unload it",
    "archive": "unload it and hide it until it is restored",
    "restore": "make an archived one active",
    "delete": "unload it and delete its files permanently",
}
MODEL_COLUMNS = ["name", "stable", "previous_stable", "state", "description"]
VERSION_COLUMNS = ["number", "semantic_tag", "named", "state", "created_at"]


def add_registry(commands: Any) -> None:
    """Add `models [ACTION MODEL]` and `versions MODEL`, `versions ACTION MODEL NUMBER`."""
    actions = "; ".join(f"{name}: {help_text}" for name, help_text in ACTIONS.items())
    for name, words, command, help_text in (
        ("models", "[ACTION MODEL]", models, "list models and their stable versions"),
        ("versions", "[ACTION] MODEL [NUMBER]", versions, "list a model's versions"),
    ):
        parser = commands.add_parser(
            name,
            help=f"{help_text}, or undeploy, archive, restore or delete one",
            usage=f"interlock {name} [-h] [--archived] [--reason TEXT] {words}",
            description=f"{help_text.capitalize()}, or change one. ACTION is one of {actions}.",
        )
        parser.add_argument("words", nargs="*", metavar=words)
        parser.add_argument("--archived", action="store_true", help="include archived ones")
        parser.add_argument("--reason", default="", help="written to the log")
        parser.set_defaults(command=command)


def models(client: Client, options: argparse.Namespace) -> int:
    match options.words:
        case []:
            rows = client.pages("models/", **_shown(options))
            return show_rows(options, rows, MODEL_COLUMNS)
        case [action, model] if action in ACTIONS:
            return _act(client, options, action, f"models/{segment(model)}/", model)
    raise _usage_error("models", "models ACTION MODEL")


def versions(client: Client, options: argparse.Namespace) -> int:
    match options.words:
        case [model]:
            return _list_versions(client, options, model)
        case [action, model, number] if action in ACTIONS and number.isdecimal():
            path = f"models/{segment(model)}/versions/{number}/"
            return _act(client, options, action, path, f"{model}:{number}")
    raise _usage_error("versions MODEL", "versions ACTION MODEL NUMBER")


def _list_versions(client: Client, options: argparse.Namespace, model: str) -> int:
    rows = client.pages(f"models/{segment(model)}/versions/", **_shown(options))
    for row in rows:
        row["state"] = _placement(row)
        row["named"] = ", ".join(row["aliases"])
    return show_rows(options, rows, VERSION_COLUMNS)


def _placement(row: dict[str, Any]) -> str:
    if row.get("state", "active") != "active":
        return str(row["state"])
    return ", ".join(each["state"] for each in row["deployments"]) or "not placed"


def _shown(options: argparse.Namespace) -> dict[str, str]:
    return {"archived": "true"} if options.archived else {}


def _act(client: Client, options: argparse.Namespace, action: str, path: str, target: str) -> int:
    """Run the action. A deletion continues after the response until servers release the files."""
    body = {"reason": options.reason}
    if action == "delete":
        answer = client.change("DELETE", path, body)
    elif action == "restore":
        answer = client.post(f"{path}restore/")
    else:
        answer = client.post(f"{path}{action}/", body)
    if options.json:
        return show_json(answer)
    result = {"undeploy": "is being unloaded", "restore": "is active"}
    print(f"{target} {result.get(action, 'is ' + answer['state'])}")
    return EXIT_OK


def _usage_error(listing: str, change: str) -> ApiError:
    actions = ", ".join(ACTIONS)
    message = f"usage: `{listing}` to list, or `{change}`; ACTION is one of {actions}"
    return ApiError(message, EXIT_BAD_REQUEST)
