"""`interlock notifications` manages notification targets and lists deliveries."""

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
    """Add `notifications`, which lists the targets, and its actions."""
    help_text = "list, add and test notification targets"
    parser = commands.add_parser("notifications", help=help_text, description=help_text)
    parser.set_defaults(command=list_targets)
    actions = parser.add_subparsers(metavar="ACTION")
    add_command(actions, "list", list_targets, "list the targets")
    _add_add(actions)
    test = add_command(
        actions, "test", test_target, "send a test message and wait for its delivery", "name"
    )
    test.add_argument("--timeout", type=float, default=30.0, metavar="S")
    for name, help_text in ACTIONS.items():
        add_command(actions, name, _act(name), help_text, "name")
    help_text = "create a new secret for a webhook and print it once"
    add_command(actions, "rotate", rotate_secret, help_text, "name")
    listing = add_command(actions, "deliveries", list_deliveries, "list the deliveries")
    listing.add_argument("--target", metavar="NAME")
    listing.add_argument("--state", choices=["waiting", "retrying", "delivered", "gave_up"])
    help_text = "send a waiting or given-up delivery now"
    add_command(actions, "retry", retry, help_text, "id")


ACTIONS = {
    "activate": "send events to a target from now on",
    "deactivate": "stop sending events to a target",
}


def _add_add(actions: Any) -> None:
    help_text = "add a target; the secret of a webhook is printed once"
    add = add_command(actions, "add", add_target, help_text, "name")
    add.add_argument("kind", choices=["webhook", "slack", "email"])
    add.add_argument("address", help="a URL or an e-mail address")
    add.add_argument(
        "--event",
        action="append",
        metavar="TYPE",
        help="send only events of this type; repeatable (default: all types)",
    )
    add.add_argument("--model", help="send only events of this model (default: all models)")


def list_targets(client: Client, options: argparse.Namespace) -> int:
    rows = client.pages("notification-targets/")
    if not options.json:
        rows = [{**row, "events": ",".join(row["events"]) or "all"} for row in rows]
        rows = [{**row, "model": row["model"] or "all"} for row in rows]
    return show_rows(options, rows, TARGET_COLUMNS)


def add_target(client: Client, options: argparse.Namespace) -> int:
    """Print only the secret on standard output, so that a script can store it."""
    body = {
        "name": options.name,
        "kind": options.kind,
        "address": options.address,
        "events": options.event or [],
        "model": options.model,
    }
    return _print_secret(options, client.post("notification-targets/", body))


def rotate_secret(client: Client, options: argparse.Namespace) -> int:
    return _print_secret(options, client.post(f"notification-targets/{options.name}/rotate/"))


def _print_secret(options: argparse.Namespace, target: dict[str, Any]) -> int:
    if options.json:
        return show_json(target)
    if not target["secret"]:
        print(f"{target['name']} is created.")
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
    """Exit with 0 when the message was delivered, with 1 when the first attempt failed."""
    ends_at = time.monotonic() + options.timeout
    delivery = client.post(f"notification-targets/{options.name}/test/")
    while delivery["state"] == "waiting":
        if time.monotonic() > ends_at:
            message = f"interlock: not sent within {options.timeout:g} s; is a worker running?"
            print(message, file=sys.stderr)
            return EXIT_TIMED_OUT
        time.sleep(POLL_S)
        delivery = client.get(f"notification-deliveries/{delivery['id']}/")
    is_delivered = delivery["state"] == "delivered"
    if options.json:
        show_json(delivery)
    else:
        print("delivered" if is_delivered else f"not delivered: {delivery['last_error']}")
    return EXIT_OK if is_delivered else EXIT_REFUSED_BY_VERDICT


def list_deliveries(client: Client, options: argparse.Namespace) -> int:
    query = {"target": options.target, "state": options.state}
    rows = client.pages("notification-deliveries/", **{k: v for k, v in query.items() if v})
    return show_rows(options, rows, DELIVERY_COLUMNS)


def retry(client: Client, options: argparse.Namespace) -> int:
    delivery = client.post(f"notification-deliveries/{options.id}/retry/")
    return show_rows(options, [delivery], DELIVERY_COLUMNS)
