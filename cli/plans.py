"""`interlock plans`: list them, print one to edit it, save it from a file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cli.client import EXIT_BAD_REQUEST, EXIT_OK, ApiError, Client
from cli.parsing import add_command, add_group, segment
from cli.show import show_json, show_rows

COLUMNS = ["name", "shares", "control", "is_default", "description"]


def add_plans(commands: Any) -> None:
    """Add `plans`, which lists them, and what shows, saves or deletes one."""
    actions = add_group(commands, "plans", "list, show, save and delete plans", list_plans)
    add_command(actions, "list", list_plans, "list the plans")
    told = "list the ready plans, one for each strategy; with --json, to be saved"
    add_command(actions, "templates", list_templates, told)
    add_command(actions, "show", show_plan, "print a plan as JSON, to be edited and saved", "name")
    told = "make a plan of a file, or change the one of its name"
    save = add_command(actions, "save", save_plan, told)
    save.add_argument("file", help="JSON as `plans show` prints it; - for standard input")
    add_command(actions, "delete", delete_plan, "delete a plan other than the default one", "name")


def list_plans(client: Client, options: argparse.Namespace) -> int:
    return _show(options, client.pages("plans/"))


def list_templates(client: Client, options: argparse.Namespace) -> int:
    return _show(options, client.get("plan-templates/"))


def _show(options: argparse.Namespace, plans: list[dict[str, Any]]) -> int:
    if options.json:
        return show_json(plans)
    return show_rows(options, [{**plan, "shares": _shares(plan)} for plan in plans], COLUMNS)


def _shares(plan: dict[str, Any]) -> str:
    """Return the shares as a rollout goes through them, held back and with the final bake."""
    most = 10_000 - plan.get("holdback_bp", 0)
    shares = [min(step["weight_bp"], most) for step in plan["steps"]]
    if plan.get("final_bake_s"):
        shares.append(most)
    return " → ".join(f"{share / 100:g}" for share in shares) + " %"


def show_plan(client: Client, options: argparse.Namespace) -> int:
    return show_json(client.get(f"plans/{segment(options.name)}/"))


def save_plan(client: Client, options: argparse.Namespace) -> int:
    plan = _read(options.file)
    name = str(plan.get("name", ""))
    if name in {each["name"] for each in client.pages("plans/")}:
        saved = client.change("PUT", f"plans/{segment(name)}/", plan)
    else:
        saved = client.post("plans/", plan)
    for notice in saved.get("notices", ()):
        print(notice, file=sys.stderr)
    return _show(options, [saved])


def _read(file: str) -> dict[str, Any]:
    try:
        plan = json.loads(sys.stdin.read() if file == "-" else Path(file).read_bytes())
    except (OSError, ValueError) as error:
        raise ApiError(f"{file} cannot be read as JSON: {error}", EXIT_BAD_REQUEST) from None
    if not isinstance(plan, dict):
        raise ApiError(f"{file} holds no plan: a JSON object is one.", EXIT_BAD_REQUEST)
    return plan


def delete_plan(client: Client, options: argparse.Namespace) -> int:
    client.change("DELETE", f"plans/{segment(options.name)}/")
    return EXIT_OK
