"""`interlock promote`, `rollback`, `status`, `explain` and the other actions on a rollout."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cli.client import EXIT_OK, Client
from cli.parsing import Command, add_command, add_overrides, segment
from cli.show import format_reason, show_json
from cli.waiting import add_waiting, print_rollout, wait

ACTIONS = {
    "pause": "pause a rollout: its bake time stops",
    "resume": "resume a paused rollout",
    "skip": "go to a rollout's next step without waiting for the current step's checks",
    "approve": "open the gate of a rollout's current step",
    "abort": "return all traffic to stable now; after a promotion, roll back",
    "finish": "make a rollout's target stable without waiting for the rest of the plan",
}
# The actions that a gate or a freeze can block.
FORCED = {"skip", "approve", "finish"}


def add_rollouts(commands: Any) -> None:
    """Add the commands that start, show and change a rollout."""
    help_text = "start a rollout that makes a version stable"
    start = add_command(commands, "promote", promote, help_text, "model")
    start.add_argument("version", help="the version's number or an alias")
    start.add_argument("--plan", help="the plan to follow (default: the default plan)")
    help_text = "start nothing; print how long each step would take with the model's recent traffic"
    start.add_argument("--dry-run", action="store_true", help=help_text)
    start.add_argument("--reason", default="", help="written to the rollout's log")
    add_overrides(start)
    add_waiting(start)
    help_text = "make the previous or an earlier version stable again, now"
    back = add_command(commands, "rollback", rollback, help_text, "model")
    back.add_argument("--to", metavar="VERSION", help="the earlier version's number or alias")
    back.add_argument("--reason", default="")
    add_overrides(back)
    help_text = "print the state of a rollout and its reason"
    add_waiting(add_command(commands, "status", status_of, help_text, "rollout"))
    help_text = "print the history of a rollout and the evidence of its decisions"
    add_command(commands, "explain", explain, help_text, "rollout")
    for name, help_text in ACTIONS.items():
        command = abort if name == "abort" else _act(name)
        acting = add_command(commands, name, command, help_text, "rollout")
        acting.add_argument("--reason", default="")
        if name in FORCED:
            add_overrides(
                acting,
                "act despite another group's gate or a freeze; requires --reason; repeatable",
            )
    help_text = "record the reason of an aborted rollout afterwards"
    add_command(commands, "reason", set_reason, help_text, "rollout", "reason")
    help_text = "let a rollout continue despite the freezes that hold it now"
    freeze = add_command(commands, "override-freeze", _act("override-freeze"), help_text, "rollout")
    freeze.add_argument("--reason", required=True, help="written to the rollout's log")
    help_text = "start a rollout again that ended without success"
    again = add_command(commands, "retry", retry, help_text, "rollout")
    add_overrides(again)
    add_waiting(again)


def promote(client: Client, options: argparse.Namespace) -> int:
    if options.dry_run:
        return _print_durations(client, options)
    body = {
        "model": options.model,
        "version": options.version,
        "plan": options.plan,
        "overrides": options.override,
    }
    if options.reason:
        body["reason"] = options.reason
    return _follow(client, client.post("rollouts/", body), options)


def _print_durations(client: Client, options: argparse.Namespace) -> int:
    """Print how long the plan would take; exit with 0 even if that is unknown."""
    plan = options.plan or next(p["name"] for p in client.pages("plans/") if p["is_default"])
    times = client.get(f"plans/{segment(plan)}/times/", model=options.model)
    if options.json:
        return show_json(times)
    if not times:
        print(f"{options.model} had no traffic in the last week: the duration is unknown")
    for time in times:
        print(f"plan {plan}, {time['rate']} ({time['period']}): {time['summary']}")
        for step in time["steps"]:
            print(f"  {step['number']}. {step['weight_bp'] / 100:g} %: {step['summary']}")
    return EXIT_OK


def retry(client: Client, options: argparse.Namespace) -> int:
    body = {"overrides": options.override}
    return _follow(client, client.post(f"{_path(options)}retry/", body), options)


def rollback(client: Client, options: argparse.Namespace) -> int:
    body = {"reason": options.reason, "version": options.to, "overrides": options.override}
    return _print_result(options, client.post(f"rollbacks/{segment(options.model)}/start/", body))


def status_of(client: Client, options: argparse.Namespace) -> int:
    if options.wait:
        return wait(client, _path(options), client.get(_path(options)), options)
    report = client.get(f"{_path(options)}explain/")
    if options.json:
        return show_json(report)
    print(report["summary"])
    for event in report["events"]:
        at, phase, reason = event["at"][:19], event["to_state"], format_reason(event)
        print(f"  {at}  {phase:<13} {event['actor']}: {reason}")
    return EXIT_OK


def explain(client: Client, options: argparse.Namespace) -> int:
    report = client.get(f"{_path(options)}explain/")
    if options.json:
        return show_json(report)
    for sentence in report["story"]:
        print(sentence)
    return EXIT_OK


def _act(name: str) -> Command:
    verb = {"finish": "promote"}.get(name, name)

    def act(client: Client, options: argparse.Namespace) -> int:
        body = {"reason": options.reason}
        if getattr(options, "override", None):
            body["overrides"] = options.override
        return _print_result(options, client.post(f"{_path(options)}{verb}/", body))

    return act


def abort(client: Client, options: argparse.Namespace) -> int:
    """Abort first; prompt for the reason afterwards, so that typing it does not delay the abort."""
    rollout = client.post(f"{_path(options)}abort/", {"reason": options.reason})
    if rollout.get("lacks_reason") and sys.stdin.isatty() and not options.json:
        print("Aborted: all traffic returns to stable.")
        reason = input("Reason of the abort (leave empty to add it later): ").strip()
        if reason:
            rollout = client.post(f"rollouts/{rollout['id']}/reason/", {"reason": reason})
    return _print_result(options, rollout)


def set_reason(client: Client, options: argparse.Namespace) -> int:
    return _print_result(
        options, client.post(f"{_path(options)}reason/", {"reason": options.reason})
    )


def _path(options: argparse.Namespace) -> str:
    return f"rollouts/{segment(options.rollout)}/"


def _follow(client: Client, rollout: dict[str, Any], options: argparse.Namespace) -> int:
    if not options.wait:
        return _print_result(options, rollout)
    return wait(client, f"rollouts/{rollout['id']}/", rollout, options)


def _print_result(options: argparse.Namespace, rollout: dict[str, Any]) -> int:
    if options.json:
        return show_json(rollout)
    print(f"rollout {rollout['id']}")
    print_rollout(rollout)
    if rollout.get("lacks_reason"):
        print(f"Record the reason of the abort: interlock reason {rollout['id']} TEXT")
    return EXIT_OK
