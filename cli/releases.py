"""`interlock release` promotes several models together or not at all."""

from __future__ import annotations

import argparse
from typing import Any

from cli.client import EXIT_BAD_REQUEST, EXIT_OK, ApiError, Client
from cli.parsing import add_command, add_group, add_overrides, segment
from cli.show import show_json, show_rows
from cli.waiting import add_waiting, print_rollout, wait


def add_releases(commands: Any) -> None:
    """Add `release`, which lists them, and its actions."""
    help_text = "promote several models together or not at all"
    actions = add_group(commands, "release", help_text, list_releases)
    add_command(actions, "list", list_releases, "list the releases")
    start = add_command(actions, "start", start_release, "start a release", "name")
    start.add_argument(
        "versions",
        nargs="+",
        metavar="MODEL=VERSION",
        help="a model with a version's number or alias",
    )
    start.add_argument("--plan", help="the plan to follow (default: the default plan)")
    add_overrides(start)
    add_waiting(start)
    help_text = "print the state of a release and of its rollouts"
    add_waiting(add_command(actions, "status", status_of, help_text, "release"))
    help_text = "return all traffic of all its models to stable, now"
    abort = add_command(actions, "abort", abort_release, help_text, "release")
    abort.add_argument("--reason", default="")


def list_releases(client: Client, options: argparse.Namespace) -> int:
    columns = ["id", "name", "plan", "state", "started_by", "started_at"]
    return show_rows(options, client.pages("releases/"), columns)


def start_release(client: Client, options: argparse.Namespace) -> int:
    pairs = [text.partition("=") for text in options.versions]
    bad = next((text for text in options.versions if not all(text.partition("="))), None)
    if bad is not None:
        raise ApiError(f"{bad!r} is not a valid MODEL=VERSION", EXIT_BAD_REQUEST)
    versions = {model: version for model, _, version in pairs}
    if len(versions) < len(pairs):
        raise ApiError("each model may be listed only once", EXIT_BAD_REQUEST)
    body = {
        "name": options.name,
        "plan": options.plan,
        "versions": versions,
        "overrides": options.override,
    }
    release = client.post("releases/", body)
    if options.wait:
        return wait(client, f"releases/{release['id']}/", release, options)
    return _print_release(options, release)


def status_of(client: Client, options: argparse.Namespace) -> int:
    release = client.get(_path(options))
    if options.wait:
        return wait(client, _path(options), release, options)
    return _print_release(options, release)


def abort_release(client: Client, options: argparse.Namespace) -> int:
    return _print_release(
        options, client.post(f"{_path(options)}abort/", {"reason": options.reason})
    )


def _path(options: argparse.Namespace) -> str:
    return f"releases/{segment(options.release)}/"


def _print_release(options: argparse.Namespace, release: dict[str, Any]) -> int:
    if options.json:
        return show_json(release)
    print(f"release {release['id']} ({release['name']}): {release['state']}")
    for rollout in release["rollouts"]:
        print_rollout(rollout)
        if rollout.get("lacks_reason"):
            print(f"Record the reason of the abort: interlock reason {rollout['id']} TEXT")
    return EXIT_OK
