"""`interlock plans` lists, shows, saves and deletes plans."""

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
    """Add `plans`, which lists them, and its actions."""
    actions = add_group(commands, "plans", "list, show, save and delete plans", list_plans)
    add_command(actions, "list", list_plans, "list the plans")
    help_text = "list the plan templates, one per strategy; use --json to save one"
    add_command(actions, "templates", list_templates, help_text)
    add_command(actions, "show", show_plan, "print a plan as JSON, to edit and save", "name")
    help_text = "create a plan from a file, or replace the plan with the same name"
    save = add_command(actions, "save", save_plan, help_text)
    save.add_argument("file", help="JSON in the format of `plans show`; - for standard input")
    add_command(actions, "delete", delete_plan, "delete a plan; not the default plan", "name")


def list_plans(client: Client, options: argparse.Namespace) -> int:
    return _show(options, client.pages("plans/"))


def list_templates(client: Client, options: argparse.Namespace) -> int:
    return _show(options, client.get("plan-templates/"))


def _show(options: argparse.Namespace, plans: list[dict[str, Any]]) -> int:
    if options.json:
        return show_json(plans)
    return show_rows(options, [{**plan, "shares": _shares(plan)} for plan in plans], COLUMNS)


def _shares(plan: dict[str, Any]) -> str:
    """Return the shares of a rollout's steps, limited by the holdback, and of the final bake."""
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
        raise ApiError(f"{file} does not contain a JSON object", EXIT_BAD_REQUEST)
    return plan


def delete_plan(client: Client, options: argparse.Namespace) -> int:
    client.change("DELETE", f"plans/{segment(options.name)}/")
    return EXIT_OK
