"""`interlock outcomes` imports files of outcomes and lists refused outcomes."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cli.client import (
    EXIT_BAD_REQUEST,
    EXIT_OK,
    EXIT_REFUSED_BY_VERDICT,
    EXIT_TIMED_OUT,
    ApiError,
    Client,
)
from cli.parsing import add_command, add_group
from cli.show import show_json, show_rows
from cli.waiting import POLL_S, add_waiting

COLUMNS = ["id", "filename", "state", "rows", "recorded", "duplicates", "unexposed"]
REFUSED = ["row", "event_id", "metric", "reason"]
COUNTS = ["metric_name", "reason", "sender", "via", "count", "last_at"]
UPLOAD_WITHIN_S = 600.0
SHOWN_MAX = 20


def add_outcomes(commands: Any) -> None:
    """Add `outcomes` and its actions."""
    help_text = "import files of outcomes, list refused outcomes"
    actions = add_group(commands, "outcomes", help_text, list_imports)
    add_command(actions, "list", list_imports, "list the imported files")
    sending = add_command(actions, "import", import_file, "import a CSV or Parquet file")
    sending.add_argument("file", type=Path)
    add_waiting(sending)
    help_text = "count refused outcomes by metric, reason and sender, or list those of an import"
    refusing = add_command(actions, "refused", show_refused, help_text)
    refusing.add_argument("import_id", nargs="?", help="list the refused rows of this import")
    refusing.add_argument("--metric", help="count only outcomes of this metric")


def list_imports(client: Client, options: argparse.Namespace) -> int:
    return show_rows(options, client.pages("outcome-imports/"), COLUMNS)


def import_file(client: Client, options: argparse.Namespace) -> int:
    """Send the file; with `--wait` exit with 0 only if no row was refused."""
    if not options.file.is_file():
        raise ApiError(f"file not found: {options.file}", EXIT_BAD_REQUEST)
    row = client.upload("outcome-imports/", {"file": options.file}, {}, timeout_s=UPLOAD_WITHIN_S)
    if not options.wait:
        return _print_import(options, row)
    started = time.monotonic()
    while row["state"] in {"waiting", "running"}:
        if options.timeout is not None and time.monotonic() - started > options.timeout:
            message = f"interlock: not finished after {options.timeout:g} s; the import continues"
            print(message, file=sys.stderr)
            _print_import(options, row)
            return EXIT_TIMED_OUT
        time.sleep(POLL_S)
        row = client.get(f"outcome-imports/{row['id']}/")
    _print_import(options, row)
    if row["error"]:
        print(f"interlock: the import stopped before the end: {row['error']}", file=sys.stderr)
    if row["refused"] and not options.json:
        answer = client.get(f"outcome-imports/{row['id']}/refused/")
        show_rows(options, answer["results"][:SHOWN_MAX], REFUSED)
        print(f"interlock: {sum(row['refused'].values()):,} rows were refused", file=sys.stderr)
    is_complete = row["state"] == "done" and not row["refused"]
    return EXIT_OK if is_complete else EXIT_REFUSED_BY_VERDICT


def show_refused(client: Client, options: argparse.Namespace) -> int:
    if options.import_id is None:
        only = {"metric": options.metric} if options.metric else {}
        return show_rows(options, client.pages("outcomes/refused/", **only), COUNTS)
    path = f"outcome-imports/{quote(options.import_id, safe='')}/refused/"
    return show_rows(options, client.pages(path), REFUSED)


def _print_import(options: argparse.Namespace, row: dict[str, Any]) -> int:
    return show_json(row) if options.json else show_rows(options, [row], COLUMNS)
