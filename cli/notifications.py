"""`interlock notifications`: who is told of what, and whether it arrives."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from cli.client import EXIT_OK, EXIT_REFUSED_BY_VERDICT, EXIT_TIMED_OUT, Client
from cli.parsing import add_command
from cli.show import show_json, show_rows

TARGET_COLUMNS = ["name", "kind", "address", "events", "model", "is_active"]
DELIVERY_COLUMNS = ["id", "target", "event", "state", "attempts", "created_at", "last_error"]
POLL_S = 0.5


def add_notifications(commands: Any) -> None:
    """Add `notifications`, which lists the targets, and what changes or tries one."""
    told = "list who is told of what, add a target, try one"
    parser = commands.add_parser("notifications", help=told, description=told)
    parser.set_defaults(command=list_targets)
    actions = parser.add_subparsers(metavar="ACTION")
    add_command(actions, "list", list_targets, "list the targets")
    _add_add(actions)
    test = add_command(
        actions, "test", test_target, "send a test message, wait for it to arrive", "name"
    )
    test.add_argument("--timeout", type=float, default=30.0, metavar="S")
    for name, told in ACTIONS.items():
        add_command(actions, name, _act(name), told, "name")
    rotate = "make a new secret of a webhook and print it, once"
    add_command(actions, "rotate", rotate_secret, rotate, "name")
    listed = add_command(actions, "deliveries", list_deliveries, "list what was told to whom")
    listed.add_argument("--target", metavar="NAME")
    listed.add_argument("--state", choices=["waiting", "retrying", "delivered", "gave_up"])
    add_command(actions, "retry", retry, "send again, now, what was given up or is waiting", "id")


ACTIONS = {
    "activate": "tell a target of what happens from now on",
    "deactivate": "send nothing more to a target",
}


def _add_add(actions: Any) -> None:
    told = "add a target; the secret of a webhook is printed, once"
    add = add_command(actions, "add", add_target, told, "name")
    add.add_argument("kind", choices=["webhook", "slack", "email"])
    add.add_argument("address", help="a URL, or an e-mail address")
    add.add_argument("--event", action="append", metavar="TYPE", help="only this (again for more)")
    add.add_argument("--model", help="only what happens to this model")


def list_targets(client: Client, options: argparse.Namespace) -> int:
    rows = client.pages("notification-targets/")
    if not options.json:
        rows = [{**row, "events": ",".join(row["events"]) or "all"} for row in rows]
        rows = [{**row, "model": row["model"] or "all"} for row in rows]
    return show_rows(options, rows, TARGET_COLUMNS)


def add_target(client: Client, options: argparse.Namespace) -> int:
    """Print the secret alone on standard output, so that a script can keep it."""
    body = {
        "name": options.name,
        "kind": options.kind,
        "address": options.address,
        "events": options.event or [],
        "model": options.model,
    }
    return _tell_secret(options, client.post("notification-targets/", body))


def rotate_secret(client: Client, options: argparse.Namespace) -> int:
    return _tell_secret(options, client.post(f"notification-targets/{options.name}/rotate/"))


def _tell_secret(options: argparse.Namespace, target: dict[str, Any]) -> int:
    if options.json:
        return show_json(target)
    if not target["secret"]:
        print(f"{target['name']} is made.")
        return EXIT_OK
    print(f"the secret of {target['name']}; it is not shown again:", file=sys.stderr)
    print(target["secret"])
    return EXIT_OK


def _act(name: str) -> Any:
    def act(client: Client, options: argparse.Namespace) -> int:
        target = client.post(f"notification-targets/{options.name}/{name}/")
        return show_rows(options, [target], TARGET_COLUMNS)

    return act


def test_target(client: Client, options: argparse.Namespace) -> int:
    """Exit with 0 once it arrived, with 1 after the first attempt that failed."""
    until = time.monotonic() + options.timeout
    delivery = client.post(f"notification-targets/{options.name}/test/")
    while delivery["state"] == "waiting":
        if time.monotonic() > until:
            told = f"interlock: not sent within {options.timeout:g} s: does a worker run?"
            print(told, file=sys.stderr)
            return EXIT_TIMED_OUT
        time.sleep(POLL_S)
        delivery = client.get(f"notification-deliveries/{delivery['id']}/")
    arrived = delivery["state"] == "delivered"
    if options.json:
        show_json(delivery)
    else:
        print("delivered" if arrived else f"not delivered: {delivery['last_error']}")
    return EXIT_OK if arrived else EXIT_REFUSED_BY_VERDICT


def list_deliveries(client: Client, options: argparse.Namespace) -> int:
    asked = {"target": options.target, "state": options.state}
    rows = client.pages("notification-deliveries/", **{k: v for k, v in asked.items() if v})
    return show_rows(options, rows, DELIVERY_COLUMNS)


def retry(client: Client, options: argparse.Namespace) -> int:
    delivery = client.post(f"notification-deliveries/{options.id}/retry/")
    return show_rows(options, [delivery], DELIVERY_COLUMNS)
