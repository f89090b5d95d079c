"""`interlock freeze`, `quarantine`, `limit` and `instances`: what holds rollouts up."""

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
    """Add what holds rollouts up, and what lets them go on."""
    _add_freezes(commands)
    told = "list the versions that were rolled back, or trust one again"
    actions = add_group(commands, "quarantine", told, list_quarantine)
    _add_model(add_command(actions, "list", list_quarantine, "list the versions in quarantine"))
    told = "let a version be rolled out again without an override"
    lift = add_command(actions, "lift", lift_quarantine, told, "model")
    lift.add_argument("version", type=int, help="its number")
    lift.add_argument("--reason", required=True, help="why it may be trusted again")
    told = f"tell or set how many rollouts may be under way at once ({ANY_NUMBER}: any number)"
    limit = add_command(commands, "limit", set_limit, told)
    limit.add_argument("most", nargs="?", type=_read_limit, metavar=f"N|{ANY_NUMBER}")
    told = "list the data plane's instances, forget one that is gone, and their tokens"
    actions = add_group(commands, "instances", told, list_instances)
    add_command(actions, "list", list_instances, "list the instances and what each serves")
    told = "stop waiting for an instance that went silent, since it is known to be gone"
    add_command(actions, "forget", forget_instance, told, "name")
    add_tokens(actions)


def _add_freezes(commands: Any) -> None:
    told = "list, add and end the times in which no rollout starts or gets further"
    actions = add_group(commands, "freeze", told, list_freezes)
    _add_model(add_command(actions, "list", list_freezes, "list the freeze windows"))
    add = add_command(actions, "add", add_freeze, "freeze a model, or all of them")
    _add_model(add, "the model (default: all models, which needs the role admin)")
    add.add_argument("--reason", required=True, help="what people read whose rollout is held")
    until = "an instant with its zone, such as 2026-12-27T08:00:00Z"
    add.add_argument("--from", dest="starts_at", metavar="T", help="(default: now)")
    add.add_argument("--until", dest="ends_at", metavar="T", required=True, help=until)
    add.add_argument("--weekly", action="store_true", help="again at the same time each week")
    zone = "by whose clocks a weekly one comes again, such as Europe/Berlin (default: UTC)"
    add.add_argument("--time-zone", metavar="NAME", help=zone)
    end = add_command(actions, "end", end_freeze, "end a freeze window now, or delete it")
    end.add_argument("id", type=int, help="its id, as `freeze list` tells it")


def _add_model(parser: argparse.ArgumentParser, told: str = "only what concerns it") -> None:
    parser.add_argument("--model", metavar="NAME", help=told)


def _read_limit(text: str) -> Any:
    return text if text == ANY_NUMBER else int(text)


def list_freezes(client: Client, options: argparse.Namespace) -> int:
    rows = client.pages("freezes/", **_only_model(options))
    shown = rows if options.json else [{**row, "model": row["model"] or "all"} for row in rows]
    return show_rows(options, shown, FREEZE_COLUMNS)


def _only_model(options: argparse.Namespace) -> dict[str, str]:
    # `freeze` alone lists as well, and has no such option.
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
    told = "Any number of rollouts" if most is None else f"At most {most} rollouts"
    print(f"{told} may be under way at once.")
    return EXIT_OK


def list_instances(client: Client, options: argparse.Namespace) -> int:
    return show_rows(options, client.pages("instances/"), INSTANCE_COLUMNS)


def forget_instance(client: Client, options: argparse.Namespace) -> int:
    client.post(f"instances/{segment(options.name)}/forget/")
    return EXIT_OK
