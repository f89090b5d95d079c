"""`interlock`: what the web UI does, for CI and people. A verdict is an exit code.

Exit codes: 0 it went as asked; 1 the rollout was rolled back or failed, or the experiment found
nothing significant; 2 the request was refused; 3 the control plane could not be reached;
4 `--timeout` passed first.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from cli.client import (
    EXIT_BAD_REQUEST,
    EXIT_OK,
    EXIT_REFUSED_BY_VERDICT,
    EXIT_TIMED_OUT,
    EXIT_UNREACHABLE,
    ApiError,
    Client,
)
from cli.notifications import add_notifications
from cli.show import show_json, show_rows
from cli.tenants import add_keys, add_tenants
from cli.versions import add_versions

Command = Callable[[Client, argparse.Namespace], int]
POLL_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    token = os.environ.get("INTERLOCK_TOKEN", "")
    if not token:
        print("Set INTERLOCK_TOKEN: make a token in the web UI under Tokens.", file=sys.stderr)
        return EXIT_BAD_REQUEST
    client = Client(options.url, token)
    try:
        code: int = options.command(client, options)
    except ApiError as error:
        print(f"interlock: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interlock: stopped waiting; the rollout goes on", file=sys.stderr)
        return EXIT_TIMED_OUT
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="interlock",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--url",
        default=os.environ.get("INTERLOCK_URL", "http://127.0.0.1:8000"),
        help="the control plane (default: INTERLOCK_URL, or %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the API's answer as JSON")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(commands, "models", models, "list models and what serves each")
    _add(commands, "versions", versions, "list a model's versions", "model")
    _add(commands, "sync", sync, "import what the registry has and Interlock has not")
    _add_promote(commands)
    _add(commands, "rollback", rollback, "make the previous stable version stable, now", "model")
    status = _add(commands, "status", status_of, "tell how a rollout stands, and why", "rollout")
    _add_waiting(status)
    for name, told in ACTIONS.items():
        _add(commands, name, _act(name), told, "rollout").add_argument("--reason", default="")
    _add(commands, "results", results, "print an experiment's results", "experiment")
    add_versions(commands)
    add_tenants(commands)
    add_keys(commands)
    add_notifications(commands)
    return parser


ACTIONS = {
    "pause": "stop a rollout's clock",
    "resume": "let a paused rollout go on",
    "abort": "take all traffic off a rollout's target, now",
    "finish": "make a rollout's target stable without waiting for the rest of the plan",
}


def _add(
    commands: Any, name: str, command: Command, told: str, *positional: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=told, description=told)
    for argument in positional:
        parser.add_argument(argument)
    parser.set_defaults(command=command)
    return parser


def _add_promote(commands: Any) -> None:
    told = "start to make a version stable"
    parser = _add(commands, "promote", promote, told, "model", "version")
    parser.add_argument("--plan", help="the plan to follow (default: the default plan)")
    _add_waiting(parser)


def _add_waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="wait for the verdict")
    parser.add_argument("--timeout", type=float, metavar="S", help="wait at most S seconds")


def models(client: Client, options: argparse.Namespace) -> int:
    rows = client.pages("models/")
    return show_rows(options, rows, ["name", "stable", "previous_stable", "description"])


def versions(client: Client, options: argparse.Namespace) -> int:
    rows = client.pages(f"models/{options.model}/versions/")
    for row in rows:
        row["state"] = ", ".join(d["state"] for d in row["deployments"]) or "not placed"
        row["named"] = ", ".join(row["aliases"])
    return show_rows(options, rows, ["number", "semantic_tag", "named", "state", "created_at"])


def sync(client: Client, options: argparse.Namespace) -> int:
    report = client.post("models/sync/")
    if options.json:
        return show_json(report)
    print(f"imported: {', '.join(report['imported']) or 'nothing'}")
    print(f"refused:  {', '.join(report['refused']) or 'nothing'}")
    if report.get("waiting"):
        print(f"not readable now: {', '.join(report['waiting'])}")
    if report.get("pushed"):
        print(f"written to MLflow: {', '.join(report['pushed'])}")
    return EXIT_OK


def promote(client: Client, options: argparse.Namespace) -> int:
    body = {"model": options.model, "version": options.version, "plan": options.plan}
    rollout = client.post("rollouts/", body)
    if not options.wait:
        return _tell(options, rollout)
    return wait(client, rollout, options)


def rollback(client: Client, options: argparse.Namespace) -> int:
    return _tell(options, client.post(f"rollbacks/{options.model}/start/"))


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


def results(client: Client, options: argparse.Namespace) -> int:
    answer = client.get(f"experiments/{options.experiment}/results/")
    if options.json:
        show_json(answer)
    else:
        print(answer["result"].get("verdict") or "There are no results yet.")
    significant = bool(answer["result"].get("is_significant"))
    return EXIT_OK if significant else EXIT_REFUSED_BY_VERDICT


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


if __name__ == "__main__":
    sys.exit(main())
