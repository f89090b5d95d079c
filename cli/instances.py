"""`interlock instances tokens`, `issue`, `rotate` and `revoke` manage the tokens of instances."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cli.client import EXIT_OK, Client
from cli.parsing import add_command
from cli.show import show_json, show_rows

COLUMNS = [
    "id",
    "instance",
    "hint",
    "state",
    "created_at",
    "created_by",
    "last_used_at",
    "expires_at",
]
HOUR_S = 3_600


def add_tokens(actions: Any) -> None:
    """Add the actions on tokens to `instances`."""
    add_command(actions, "tokens", list_tokens, "list the tokens of all instances")
    help_text = "create an instance's first token and print it once"
    add_command(actions, "issue", issue, help_text, "instance")
    help_text = "create a new token and print it once; older tokens expire after --overlap-h hours"
    rotation = add_command(actions, "rotate", rotate, help_text, "instance")
    rotation.add_argument(
        "--overlap-h", type=float, default=24.0, metavar="HOURS", help="default: %(default)s"
    )
    revocation = add_command(actions, "revoke", revoke, "revoke a token")
    revocation.add_argument("id", type=int, help="the token's id; `instances tokens` prints it")


def list_tokens(client: Client, options: argparse.Namespace) -> int:
    return show_rows(options, client.pages("instance-tokens/"), COLUMNS)


def issue(client: Client, options: argparse.Namespace) -> int:
    return _show(options, client.post("instance-tokens/", {"instance": options.instance}))


def rotate(client: Client, options: argparse.Namespace) -> int:
    overlap_s = round(options.overlap_h * HOUR_S)
    body = {"instance": options.instance, "overlap_s": overlap_s}
    return _show(options, client.post("instance-tokens/rotate/", body))


def revoke(client: Client, options: argparse.Namespace) -> int:
    return show_rows(options, [client.post(f"instance-tokens/{options.id}/revoke/")], COLUMNS)


def _show(options: argparse.Namespace, token: Any) -> int:
    """Print only the token on standard output, so that a script can store it."""
    if options.json:
        return show_json(token)
    message = f"token {token['id']} of instance {token['instance']}; it is not shown again:"
    print(message, file=sys.stderr)
    print(token["token"])
    return EXIT_OK
