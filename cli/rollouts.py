"""`interlock promote`, `rollback`, `status` and what a person does to a rollout."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from cli.client import (
    EXIT_OK,
    EXIT_REFUSED_BY_VERDICT,
    EXIT_TIMED_OUT,
    EXIT_UNREACHABLE,
    ApiError,
    Client,
)
from cli.show import show_json

Command = Callable[[Client, argparse.Namespace], int]
POLL_S = 1.0
ACTIONS = {
    "pause": "stop a rollout's clock",
    "resume": "let a paused rollout go on",
    "skip": "go on to a rollout's next step without waiting for this one's checks",
    "approve": "open the gate of a rollout's present step",
    "abort": "take all traffic off a rollout's target, now",
    "finish": "make a rollout's target stable without waiting for the rest of the plan",
}


def add_rollouts(commands: Any) -> None:
    """Add what starts a rollout, tells of one and acts on one."""
    promote_ = _add(commands, "promote", promote, "start to make a version stable", "model")
    promote_.add_argument("version", help="its number, or an alias")
    promote_.add_argument("--plan", help="the plan to follow (default: the default plan)")
    add_overrides(promote_)
    _add_waiting(promote_)
    told = "make the version before, or an earlier one, stable again, now"
    back = _add(commands, "rollback", rollback, told, "model")
    back.add_argument("--to", metavar="VERSION", help="the earlier version: its number or alias")
    back.add_argument("--reason", default="")
    status = _add(commands, "status", status_of, "tell how a rollout stands, and why", "rollout")
    _add_waiting(status)
    for name, told in ACTIONS.items():
        _add(commands, name, _act(name), told, "rollout").add_argument("--reason", default="")
    told = "start a rollout that ended without success once more"
    again = _add(commands, "retry", retry, told, "rollout")
    add_overrides(again)
    _add_waiting(again)


def _add(
    commands: Any, name: str, command: Command, told: str, *positional: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=told, description=told)
    for argument in positional:
        parser.add_argument(argument)
    parser.set_defaults(command=command)
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add `--override`, repeatable; the server knows which there are."""
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="WHAT",
        help="start despite a quarantine, signature or freeze; repeatable",
    )


def _add_waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="wait for the verdict")
    parser.add_argument("--timeout", type=float, metavar="S", help="wait at most S seconds")


def promote(client: Client, options: argparse.Namespace) -> int:
    body = {
        "model": options.model,
        "version": options.version,
        "plan": options.plan,
        "overrides": options.override,
    }
    return _started(client, client.post("rollouts/", body), options)


def retry(client: Client, options: argparse.Namespace) -> int:
    body = {"overrides": options.override}
    return _started(client, client.post(f"rollouts/{options.rollout}/retry/", body), options)


def _started(client: Client, rollout: dict[str, Any], options: argparse.Namespace) -> int:
    return wait(client, rollout, options) if options.wait else _tell(options, rollout)


def rollback(client: Client, options: argparse.Namespace) -> int:
    body = {"reason": options.reason, "version": options.to}
    return _tell(options, client.post(f"rollbacks/{options.model}/start/", body))


def status_of(client: Client, options: argparse.Namespace) -> int:
    rollout = client.get(f"rollouts/{options.rollout}/")
    if options.wait:
        return wait(client, rollout, options)
    told = client.get(f"rollouts/{options.rollout}/explain/")
    if options.json:
        return show_json(told)
    print(told["summary"])
    for event in told["events"]:
        print(f"  {event['at'][:19]}  {event['to_state']:<13} {event['actor']}: {event['reason']}")
    return EXIT_OK


def _act(name: str) -> Command:
    verb = {"finish": "promote"}.get(name, name)

    def act(client: Client, options: argparse.Namespace) -> int:
        path = f"rollouts/{options.rollout}/{verb}/"
        return _tell(options, client.post(path, {"reason": options.reason}))

    return act


def wait(client: Client, rollout: dict[str, Any], options: argparse.Namespace) -> int:
    """Follow a rollout until it ends; print each change; return the verdict's exit code."""
    started = time.monotonic()
    told = None
    while True:
        now = (rollout["phase"], rollout["weight_bp"], rollout["revision"])
        if now != told and not options.json:
            _say(rollout)
        told = now
        if not rollout["is_live"]:
            return _verdict(rollout, options)
        if options.timeout is not None and time.monotonic() - started > options.timeout:
            print(
                f"interlock: still {rollout['phase']} after {options.timeout:g} s; it goes on",
                file=sys.stderr,
            )
            return EXIT_TIMED_OUT
        time.sleep(POLL_S)
        rollout = _patiently(client, rollout)


def _patiently(client: Client, rollout: dict[str, Any]) -> dict[str, Any]:
    """Ask again; a control plane that is away for a moment does not end the wait."""
    try:
        answer: dict[str, Any] = client.get(f"rollouts/{rollout['id']}/")
    except ApiError as error:
        if error.exit_code != EXIT_UNREACHABLE:
            raise
        print(f"interlock: {error}; trying again", file=sys.stderr)
        return rollout
    return answer


def _verdict(rollout: dict[str, Any], options: argparse.Namespace) -> int:
    if options.json:
        show_json(rollout)
    return EXIT_OK if rollout["phase"] == "succeeded" else EXIT_REFUSED_BY_VERDICT


def _tell(options: argparse.Namespace, rollout: dict[str, Any]) -> int:
    if options.json:
        return show_json(rollout)
    print(f"rollout {rollout['id']}")
    _say(rollout)
    return EXIT_OK


def _say(rollout: dict[str, Any]) -> None:
    share = rollout["weight_bp"] / 100
    name = f"{rollout['model']}:{rollout['target']}"
    print(f"{name} {rollout['phase']} at {share:g} %: {rollout['reason']}", flush=True)
