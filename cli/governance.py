"""`interlock freeze`, `quarantine`, `limit` and `instances` manage what can hold rollouts."""

from __future__ import annotations

import argparse
from typing import Any

from cli.client import EXIT_OK, Client
from cli.instances import add_tokens
from cli.parsing import add_command, add_group, segment
from cli.show import show_json, show_rows

FREEZE_COLUMNS = [
    "id",
    "model",
    "starts_at",
    "ends_at",
    "is_weekly",
    "time_zone",
    "open_until",
    "reason",
]
QUARANTINE_COLUMNS = ["model", "version", "at", "rollout", "reason"]
INSTANCE_COLUMNS = [
    "name",
    "applied_generation",
    "refused_generation",
    "is_live",
    "reported_at",
    "waited_until",
]
ANY_NUMBER = "none"


def add_governance(commands: Any) -> None:
    """Add `freeze`, `quarantine`, `limit` and `instances`."""
    _add_freezes(commands)
    help_text = "list the quarantined versions, or end a quarantine"
    actions = add_group(commands, "quarantine", help_text, list_quarantine)
    _add_model(add_command(actions, "list", list_quarantine, "list the quarantined versions"))
    help_text = "end a version's quarantine: rollouts of it need no override"
    lift = add_command(actions, "lift", lift_quarantine, help_text, "model")
    lift.add_argument("version", type=int, help="the version's number")
    lift.add_argument("--reason", required=True, help="why the version can be trusted again")
    help_text = f"print or set the maximum number of concurrent rollouts ({ANY_NUMBER}: no limit)"
    limit = add_command(commands, "limit", set_limit, help_text)
    limit.add_argument("most", nargs="?", type=_read_limit, metavar=f"N|{ANY_NUMBER}")
    help_text = "list the data plane's instances, forget one, manage their tokens"
    actions = add_group(commands, "instances", help_text, list_instances)
    add_command(
        actions, "list", list_instances, "list the instances and the generation each serves"
    )
    help_text = "stop waiting for a silent instance that no longer exists"
    add_command(actions, "forget", forget_instance, help_text, "name")
    add_tokens(actions)


def _add_freezes(commands: Any) -> None:
    help_text = "list, add and end freeze windows, in which no rollout starts or advances"
    actions = add_group(commands, "freeze", help_text, list_freezes)
    _add_model(add_command(actions, "list", list_freezes, "list the freeze windows"))
    add = add_command(actions, "add", add_freeze, "add a freeze window for a model or all models")
    _add_model(add, "the model (default: all models, which requires the role admin)")
    add.add_argument("--reason", required=True, help="shown to people whose rollout is held")
    until = "ISO 8601 with a time zone, such as 2026-12-27T08:00:00Z"
    add.add_argument("--from", dest="starts_at", metavar="T", help="start (default: now)")
    add.add_argument("--until", dest="ends_at", metavar="T", required=True, help=f"end: {until}")
    add.add_argument("--weekly", action="store_true", help="repeat every week")
    zone = "time zone in which a weekly window repeats, such as Europe/Berlin (default: UTC)"
    add.add_argument("--time-zone", metavar="NAME", help=zone)
    end = add_command(actions, "end", end_freeze, "end a freeze window now, or delete it")
    end.add_argument("id", type=int, help="the window's id; `freeze list` prints it")


def _add_model(
    parser: argparse.ArgumentParser, help_text: str = "list only entries of this model"
) -> None:
    parser.add_argument("--model", metavar="NAME", help=help_text)


def _read_limit(text: str) -> Any:
    return text if text == ANY_NUMBER else int(text)


def list_freezes(client: Client, options: argparse.Namespace) -> int:
    rows = client.pages("freezes/", **_only_model(options))
    shown = rows if options.json else [{**row, "model": row["model"] or "all"} for row in rows]
    return show_rows(options, shown, FREEZE_COLUMNS)


def _only_model(options: argparse.Namespace) -> dict[str, str]:
    # `freeze` without an action lists too, and does not have this option.
    name = getattr(options, "model", None)
    return {"model": name} if name else {}


def add_freeze(client: Client, options: argparse.Namespace) -> int:
    body = {
        "model": options.model,
        "reason": options.reason,
        "ends_at": options.ends_at,
        "is_weekly": options.weekly,
    }
    if options.starts_at:
        body["starts_at"] = options.starts_at
    if options.time_zone:
        body["time_zone"] = options.time_zone
    window = client.post("freezes/", body)
    return show_json(window) if options.json else show_rows(options, [window], FREEZE_COLUMNS)


def end_freeze(client: Client, options: argparse.Namespace) -> int:
    client.change("DELETE", f"freezes/{options.id}/")
    return EXIT_OK


def list_quarantine(client: Client, options: argparse.Namespace) -> int:
    rows = client.pages("quarantine/", **_only_model(options))
    return show_rows(options, rows, QUARANTINE_COLUMNS)


def lift_quarantine(client: Client, options: argparse.Namespace) -> int:
    path = f"quarantine/{segment(options.model)}/{options.version}/"
    client.change("DELETE", path, {"reason": options.reason})
    return EXIT_OK


def set_limit(client: Client, options: argparse.Namespace) -> int:
    if options.most is None:
        answer = client.get("rollout-policy/")
    else:
        most = None if options.most == ANY_NUMBER else options.most
        answer = client.change("PUT", "rollout-policy/", {"concurrent_max": most})
    if options.json:
        return show_json(answer)
    most = answer["concurrent_max"]
    limit = "Any number of rollouts" if most is None else f"At most {most} rollouts"
    print(f"{limit} may run at the same time.")
    return EXIT_OK


def list_instances(client: Client, options: argparse.Namespace) -> int:
    return show_rows(options, client.pages("instances/"), INSTANCE_COLUMNS)


def forget_instance(client: Client, options: argparse.Namespace) -> int:
    client.post(f"instances/{segment(options.name)}/forget/")
    return EXIT_OK
