"""`interlock register` and `alias` register a version, for example from CI, and set aliases."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from cli.client import EXIT_BAD_REQUEST, EXIT_OK, EXIT_TIMED_OUT, ApiError, Client
from cli.show import show_json

# Uploading and inspecting a large file takes minutes.
UPLOAD_TIMEOUT_S = 900.0
POLL_S = 0.5


def add_versions(commands: Any) -> None:
    """Add `register` and `alias`."""
    help_text = "register a version of a model from an ONNX file or a URI; print its number"
    register = commands.add_parser("register", help=help_text, description=help_text)
    register.add_argument("model")
    source = register.add_mutually_exclusive_group(required=True)
    source.add_argument("--file", type=Path, metavar="PATH", help="an ONNX file to upload")
    source.add_argument(
        "--uri", help="models:/NAME/NUMBER, runs:/RUN/PATH, … for the server to read"
    )
    register.add_argument(
        "--external-data", type=Path, metavar="PATH", help="the file's external data, if it has any"
    )
    for name, help_text in (("metric", "a training metric"), ("param", "a hyper-parameter")):
        register.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help=f"{help_text}; repeatable",
        )
    register.add_argument("--dataset-digest", help="digest of the training data")
    register.add_argument("--tag", dest="semantic_tag", help="a semantic tag, such as v1.2.3")
    register.add_argument("--description")
    register.add_argument("--run-url", help="URL of the run's page, such as the CI job's")
    register.add_argument(
        "--warmup", type=Path, metavar="PATH", help="a JSON file of warm-up requests"
    )
    register.add_argument(
        "--timeout",
        type=float,
        default=UPLOAD_TIMEOUT_S,
        metavar="S",
        help="wait at most S seconds",
    )
    register.set_defaults(command=register_version)
    _add_alias(commands)


def _add_alias(commands: Any) -> None:
    help_text = "set or delete an alias of a version, here and in MLflow; not `champion`"
    alias = commands.add_parser("alias", help=help_text, description=help_text)
    alias.add_argument("model")
    alias.add_argument("alias")
    alias.add_argument("version", nargs="?", type=int, help="the version's number")
    alias.add_argument("--delete", action="store_true", help="delete the alias")
    alias.set_defaults(command=move_alias)


def register_version(client: Client, options: argparse.Namespace) -> int:
    """Print only the version's number on standard output, so that a script can promote it."""
    path = f"models/{options.model}/versions/"
    metadata = _metadata(options)
    if options.uri:
        row = client.post(path, {"uri": options.uri, **metadata}, timeout_s=UPLOAD_TIMEOUT_S)
    else:
        # A form field holds an object or a list as JSON.
        fields = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
        paths = {"file": options.file, "external_data": options.external_data}
        files = {name: _existing(path) for name, path in paths.items() if path is not None}
        row = client.upload(path, files, fields, timeout_s=UPLOAD_TIMEOUT_S)
    row = _wait_until_settled(client, row, options)
    if row["error"]:
        raise ApiError(row["error"]["message"], EXIT_BAD_REQUEST)
    if options.json:
        return show_json(row)
    print(row["version"])
    return EXIT_OK


def _wait_until_settled(
    client: Client, row: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Poll the registration until it is settled; print each stage on standard error."""
    ends_at = time.monotonic() + options.timeout
    stage = ""
    while not row["is_settled"]:
        if row["stage"] != stage:
            stage = row["stage"]
            print(f"interlock: {stage}", file=sys.stderr)
        if time.monotonic() > ends_at:
            path = f"registrations/{row['id']}/"
            raise ApiError(
                f"not settled after {options.timeout:g} s; the registration continues, see {path}",
                EXIT_TIMED_OUT,
            )
        time.sleep(POLL_S)
        row = client.get(f"registrations/{row['id']}/")
    return row


def _metadata(options: argparse.Namespace) -> dict[str, Any]:
    fields = {
        name: getattr(options, name)
        for name in ("dataset_digest", "semantic_tag", "description", "run_url")
    }
    metrics = _pairs("--metric", options.metric)
    fields["metrics"] = {k: _number("--metric", k, v) for k, v in metrics}
    fields["parameters"] = dict(_pairs("--param", options.param))
    if options.warmup is not None:
        fields["warmup"] = _read_json(options.warmup)
    return {name: value for name, value in fields.items() if value not in (None, {})}


def _pairs(option: str, arguments: list[str]) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in arguments]
    for name, separator, _ in pairs:
        if not name or not separator:
            raise ApiError(f"{option} takes NAME=VALUE, not {name!r}", EXIT_BAD_REQUEST)
    return [(name, value) for name, _, value in pairs]


def _number(option: str, name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        message = f"{option} {name}={value}: {value!r} is not a number"
        raise ApiError(message, EXIT_BAD_REQUEST) from None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ApiError(f"file not found: {path}", EXIT_BAD_REQUEST)
    return path


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ApiError(f"--warmup: {path} cannot be read: {error}", EXIT_BAD_REQUEST) from None


def move_alias(client: Client, options: argparse.Namespace) -> int:
    path = f"models/{options.model}/aliases/{options.alias}/"
    if options.delete == (options.version is not None):
        raise ApiError("expected either a version or --delete", EXIT_BAD_REQUEST)
    if options.delete:
        client.change("DELETE", path)
        return EXIT_OK
    alias = client.change("PUT", path, {"version": options.version})
    if options.json:
        return show_json(alias)
    pending = "; not yet written to MLflow" if alias["is_pending"] else ""
    print(f"{options.model}@{alias['name']} names version {alias['version']}{pending}")
    return EXIT_OK
