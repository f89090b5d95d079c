"""`interlock tenants` and `interlock keys` manage tenants, their quotas and their API keys."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cli.client import EXIT_OK, Client
from cli.parsing import add_command
from cli.show import show_json, show_rows

TENANT_COLUMNS = [
    "name",
    "requests_per_s",
    "burst",
    "concurrency_max",
    "priority",
    "active_keys",
]
KEY_COLUMNS = ["id", "tenant", "name", "opens", "hint", "created_at", "created_by", "revoked_at"]
NO_LIMIT = "none"


def add_tenants(commands: Any) -> None:
    """Add `tenants`, which lists them, and its actions."""
    help_text = "list tenants and their quotas, or change them"
    parser = commands.add_parser("tenants", help=help_text, description=help_text)
    parser.set_defaults(command=list_tenants)
    actions = parser.add_subparsers(metavar="ACTION")
    for name, command, help_text in (
        ("create", create_tenant, "create a tenant"),
        ("set", set_quota, "change a tenant's quota"),
    ):
        _add_quota(add_command(actions, name, command, help_text, "tenant"))
    help_text = "delete a tenant: its API keys are refused at once"
    add_command(actions, "delete", delete_tenant, help_text, "tenant")


def add_keys(commands: Any) -> None:
    """Add `keys` and its actions."""
    help_text = "create, list and revoke API keys of tenants"
    parser = commands.add_parser("keys", help=help_text, description=help_text)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    add_command(actions, "list", list_keys, "list a tenant's API keys", "tenant")
    create = add_command(
        actions, "create", create_key, "create an API key and print it once", "tenant"
    )
    create.add_argument("--name", default="cli", help="the key's purpose (default: %(default)s)")
    create.add_argument(
        "--model",
        action="append",
        default=[],
        help="a model that the key grants access to; repeatable (default: all models)",
    )
    revoke = add_command(actions, "revoke", revoke_key, "revoke an API key", "tenant")
    revoke.add_argument("id", type=int, help="the key's id; `keys list` prints it")
    required = add_command(
        actions, "required", require_keys, "print or set whether predictions require a key"
    )
    required.add_argument("answer", nargs="?", choices=["yes", "no"])


def _add_quota(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests-per-s", type=_limit(float), metavar="N")
    parser.add_argument("--burst", type=_limit(int), metavar="N")
    parser.add_argument("--concurrency-max", type=_limit(int), metavar="N")
    parser.add_argument("--priority", choices=["high", "normal", "low"])


def _limit(kind: Any) -> Any:
    """Return an argparse type that accepts a number, or `none` for no limit."""

    def read(text: str) -> Any:
        return NO_LIMIT if text == NO_LIMIT else kind(text)

    read.__name__ = f"number (or {NO_LIMIT!r})"
    return read


def _quota(options: argparse.Namespace) -> dict[str, Any]:
    """Return the quota options that were supplied; `none` becomes null: no limit."""
    names = ("requests_per_s", "burst", "concurrency_max", "priority")
    values = {name: getattr(options, name) for name in names}
    return {k: None if v == NO_LIMIT else v for k, v in values.items() if v is not None}


def list_tenants(client: Client, options: argparse.Namespace) -> int:
    return show_rows(options, client.pages("tenants/"), TENANT_COLUMNS)


def create_tenant(client: Client, options: argparse.Namespace) -> int:
    body = {"name": options.tenant, **_quota(options)}
    return show_rows(options, [client.post("tenants/", body)], TENANT_COLUMNS)


def set_quota(client: Client, options: argparse.Namespace) -> int:
    answer = client.change("PATCH", f"tenants/{options.tenant}/", _quota(options))
    return show_rows(options, [answer], TENANT_COLUMNS)


def delete_tenant(client: Client, options: argparse.Namespace) -> int:
    client.change("DELETE", f"tenants/{options.tenant}/")
    return EXIT_OK


def list_keys(client: Client, options: argparse.Namespace) -> int:
    return _show_keys(options, client.pages(f"tenants/{options.tenant}/keys/"))


def _show_keys(options: argparse.Namespace, keys: list[Any]) -> int:
    if options.json:
        return show_json(keys)
    for key in keys:
        key["opens"] = ", ".join(key["models"]) or "all models"
    return show_rows(options, keys, KEY_COLUMNS)


def create_key(client: Client, options: argparse.Namespace) -> int:
    """Print only the key on standard output, so that a script can store it."""
    body = {"name": options.name, **({"models": options.model} if options.model else {})}
    key = client.post(f"tenants/{options.tenant}/keys/", body)
    if options.json:
        return show_json(key)
    message = f"API key {key['id']} of {key['tenant']}; it is not shown again:"
    print(message, file=sys.stderr)
    print(key["key"])
    return EXIT_OK


def revoke_key(client: Client, options: argparse.Namespace) -> int:
    key = client.post(f"tenants/{options.tenant}/keys/{options.id}/revoke/")
    return _show_keys(options, [key])


def require_keys(client: Client, options: argparse.Namespace) -> int:
    if options.answer is None:
        answer = client.get("serving-policy/")
    else:
        body = {"key_required": options.answer == "yes"}
        answer = client.change("PUT", "serving-policy/", body)
    if options.json:
        return show_json(answer)
    print("An API key is required." if answer["key_required"] else "No API key is required.")
    return EXIT_OK
