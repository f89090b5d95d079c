"""`interlock release`: several models that move together or not at all."""

from __future__ import annotations

import argparse
from typing import Any

from cli.client import EXIT_BAD_REQUEST, EXIT_OK, ApiError, Client
from cli.parsing import add_command, add_group, add_overrides, segment
from cli.show import show_json, show_rows
from cli.waiting import add_waiting, say, wait


def add_releases(commands: Any) -> None:
    """Add `release`, which lists them, and what starts or aborts one."""
    told = "move several models together or not at all"
    actions = add_group(commands, "release", told, list_releases)
    add_command(actions, "list", list_releases, "list the releases")
    start = add_command(actions, "start", start_release, "start a release", "name")
    start.add_argument("versions", nargs="+", metavar="MODEL=VERSION", help="a number or an alias")
    start.add_argument("--plan", help="the plan to follow (default: the default plan)")
    add_overrides(start)
    add_waiting(start)
    told = "tell how a release and each of its rollouts stand"
    add_waiting(add_command(actions, "status", status_of, told, "release"))
    told = "take all traffic off the targets of all its models, now"
    abort = add_command(actions, "abort", abort_release, told, "release")
    abort.add_argument("--reason", default="")


def list_releases(client: Client, options: argparse.Namespace) -> int:
    columns = ["id", "name", "plan", "state", "started_by", "started_at"]
    return show_rows(options, client.pages("releases/"), columns)


def start_release(client: Client, options: argparse.Namespace) -> int:
    pairs = [text.partition("=") for text in options.versions]
    bad = next((text for text in options.versions if not all(text.partition("="))), None)
    if bad is not None:
        raise ApiError(f"{bad!r} is not MODEL=VERSION.", EXIT_BAD_REQUEST)
    versions = {model: version for model, _, version in pairs}
    if len(versions) < len(pairs):
        raise ApiError("A model is named twice.", EXIT_BAD_REQUEST)
    body = {
        "name": options.name,
        "plan": options.plan,
        "versions": versions,
        "overrides": options.override,
    }
    release = client.post("releases/", body)
    if options.wait:
        return wait(client, f"releases/{release['id']}/", release, options)
    return _tell(options, release)


def status_of(client: Client, options: argparse.Namespace) -> int:
    release = client.get(_path(options))
    if options.wait:
        return wait(client, _path(options), release, options)
    return _tell(options, release)


def abort_release(client: Client, options: argparse.Namespace) -> int:
    return _tell(options, client.post(f"{_path(options)}abort/", {"reason": options.reason}))


def _path(options: argparse.Namespace) -> str:
    return f"releases/{segment(options.release)}/"


def _tell(options: argparse.Namespace, release: dict[str, Any]) -> int:
    if options.json:
        return show_json(release)
    print(f"release {release['id']} ({release['name']}): {release['state']}")
    for rollout in release["rollouts"]:
        say(rollout)
        if rollout.get("lacks_reason"):
            print(f"Say why it was aborted: interlock reason {rollout['id']} TEXT")
    return EXIT_OK
