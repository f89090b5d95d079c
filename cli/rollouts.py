"""`interlock promote`, `rollback`, `status`, `explain` and what a person does to a rollout."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cli.client import EXIT_OK, Client
from cli.parsing import Command, add_command, add_overrides, segment
from cli.show import show_json
from cli.waiting import add_waiting, say, wait

ACTIONS = {
    "pause": "stop a rollout's clock",
    "resume": "let a paused rollout go on",
    "skip": "go on to a rollout's next step without waiting for this one's checks",
    "approve": "open the gate of a rollout's present step",
    "abort": "take all traffic off a rollout's target, now; after a promotion, roll back",
    "finish": "make a rollout's target stable without waiting for the rest of the plan",
}
# What gates and freezes may be in the way of.
FORCED = {"skip", "approve", "finish"}


def add_rollouts(commands: Any) -> None:
    """Add what starts a rollout, tells of one and acts on one."""
    start = add_command(commands, "promote", promote, "start to make a version stable", "model")
    start.add_argument("version", help="its number, or an alias")
    start.add_argument("--plan", help="the plan to follow (default: the default plan)")
    told = "start nothing; tell how long each step would take at the model's traffic of late"
    start.add_argument("--dry-run", action="store_true", help=told)
    start.add_argument("--reason", default="", help="why; kept in its log")
    add_overrides(start)
    add_waiting(start)
    told = "make the version before, or an earlier one, stable again, now"
    back = add_command(commands, "rollback", rollback, told, "model")
    back.add_argument("--to", metavar="VERSION", help="the earlier version: its number or alias")
    back.add_argument("--reason", default="")
    add_overrides(back)
    told = "tell how a rollout stands, and why"
    add_waiting(add_command(commands, "status", status_of, told, "rollout"))
    told = "tell the whole story of a rollout, and what decided it"
    add_command(commands, "explain", explain, told, "rollout")
    for name, told in ACTIONS.items():
        command = abort if name == "abort" else _act(name)
        acting = add_command(commands, name, command, told, "rollout")
        acting.add_argument("--reason", default="")
        if name in FORCED:
            past = "go past a gate that is not yours, or on in a freeze; needs --reason; repeatable"
            add_overrides(acting, past)
    told = "say afterwards why a rollout was aborted"
    add_command(commands, "reason", give_reason, told, "rollout", "reason")
    told = "let a rollout go on in the freezes that hold it now"
    freeze = add_command(commands, "override-freeze", _act("override-freeze"), told, "rollout")
    freeze.add_argument("--reason", required=True, help="kept in its log")
    told = "start a rollout that ended without success once more"
    again = add_command(commands, "retry", retry, told, "rollout")
    add_overrides(again)
    add_waiting(again)


def promote(client: Client, options: argparse.Namespace) -> int:
    if options.dry_run:
        return _foresee(client, options)
    body = {
        "model": options.model,
        "version": options.version,
        "plan": options.plan,
        "overrides": options.override,
    }
    if options.reason:
        body["reason"] = options.reason
    return _started(client, client.post("rollouts/", body), options)


def _foresee(client: Client, options: argparse.Namespace) -> int:
    """Print how long the plan would take; exit 0, also where it could not decide."""
    plan = options.plan or next(p["name"] for p in client.pages("plans/") if p["is_default"])
    times = client.get(f"plans/{segment(plan)}/times/", model=options.model)
    if options.json:
        return show_json(times)
    if not times:
        print(f"{options.model} had no traffic in the last week: how long it takes cannot be told")
    for time in times:
        print(f"plan {plan}, {time['rate']} ({time['period']}): {time['told']}")
        for step in time["steps"]:
            print(f"  {step['number']}. {step['weight_bp'] / 100:g} %: {step['told']}")
    return EXIT_OK


def retry(client: Client, options: argparse.Namespace) -> int:
    body = {"overrides": options.override}
    return _started(client, client.post(f"{_path(options)}retry/", body), options)


def rollback(client: Client, options: argparse.Namespace) -> int:
    body = {"reason": options.reason, "version": options.to, "overrides": options.override}
    return _tell(options, client.post(f"rollbacks/{segment(options.model)}/start/", body))


def status_of(client: Client, options: argparse.Namespace) -> int:
    if options.wait:
        return wait(client, _path(options), client.get(_path(options)), options)
    told = client.get(f"{_path(options)}explain/")
    if options.json:
        return show_json(told)
    print(told["summary"])
    for event in told["events"]:
        print(f"  {event['at'][:19]}  {event['to_state']:<13} {event['actor']}: {event['reason']}")
    return EXIT_OK


def explain(client: Client, options: argparse.Namespace) -> int:
    told = client.get(f"{_path(options)}explain/")
    if options.json:
        return show_json(told)
    for sentence in told["story"]:
        print(sentence)
    return EXIT_OK


def _act(name: str) -> Command:
    verb = {"finish": "promote"}.get(name, name)

    def act(client: Client, options: argparse.Namespace) -> int:
        body = {"reason": options.reason}
        if getattr(options, "override", None):
            body["overrides"] = options.override
        return _tell(options, client.post(f"{_path(options)}{verb}/", body))

    return act


def abort(client: Client, options: argparse.Namespace) -> int:
    """Abort first; ask a person at a terminal for the reason afterwards, whom none hurries then."""
    rollout = client.post(f"{_path(options)}abort/", {"reason": options.reason})
    if rollout.get("lacks_reason") and sys.stdin.isatty() and not options.json:
        print("Aborted: all traffic goes back.")
        reason = input("Why was it aborted (empty: say it later)? ").strip()
        if reason:
            rollout = client.post(f"rollouts/{rollout['id']}/reason/", {"reason": reason})
    return _tell(options, rollout)


def give_reason(client: Client, options: argparse.Namespace) -> int:
    return _tell(options, client.post(f"{_path(options)}reason/", {"reason": options.reason}))


def _path(options: argparse.Namespace) -> str:
    return f"rollouts/{segment(options.rollout)}/"


def _started(client: Client, rollout: dict[str, Any], options: argparse.Namespace) -> int:
    if not options.wait:
        return _tell(options, rollout)
    return wait(client, f"rollouts/{rollout['id']}/", rollout, options)


def _tell(options: argparse.Namespace, rollout: dict[str, Any]) -> int:
    if options.json:
        return show_json(rollout)
    print(f"rollout {rollout['id']}")
    say(rollout)
    if rollout.get("lacks_reason"):
        print(f"Say why it was aborted: interlock reason {rollout['id']} TEXT")
    return EXIT_OK
