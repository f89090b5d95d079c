"""`interlock outcomes`: import files of outcomes, and read what was refused."""

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

COLUMNS = ["id", "filename", "state", "rows", "recorded", "duplicates", "strangers"]
REFUSED = ["row", "event_id", "metric", "reason"]
COUNTS = ["metric_name", "reason", "sender", "via", "count", "last_at"]
UPLOAD_WITHIN_S = 600.0
SHOWN_MAX = 20


def add_outcomes(commands: Any) -> None:
    """Add the commands of outcomes."""
    actions = add_group(commands, "outcomes", "import files of outcomes", list_imports)
    add_command(actions, "list", list_imports, "list the files that were imported")
    sending = add_command(actions, "import", import_file, "send a CSV or Parquet file")
    sending.add_argument("file", type=Path)
    add_waiting(sending)
    told = "how many outcomes were refused, by metric, reason and sender; of an import its rows"
    refusing = add_command(actions, "refused", show_refused, told)
    refusing.add_argument("import_id", nargs="?", help="an import: print its refused rows")
    refusing.add_argument("--metric", help="only outcomes that named this metric")


def list_imports(client: Client, options: argparse.Namespace) -> int:
    return show_rows(options, client.pages("outcome-imports/"), COLUMNS)


def import_file(client: Client, options: argparse.Namespace) -> int:
    """Send the file; with `--wait` exit with 0 only when no row was refused."""
    if not options.file.is_file():
        raise ApiError(f"there is no file {options.file}", EXIT_BAD_REQUEST)
    made = client.upload("outcome-imports/", {"file": options.file}, {}, timeout_s=UPLOAD_WITHIN_S)
    if not options.wait:
        return _tell(options, made)
    started = time.monotonic()
    while made["state"] in {"waiting", "running"}:
        if options.timeout is not None and time.monotonic() - started > options.timeout:
            print(f"interlock: after {options.timeout:g} s it is being read on", file=sys.stderr)
            _tell(options, made)
            return EXIT_TIMED_OUT
        time.sleep(POLL_S)
        made = client.get(f"outcome-imports/{made['id']}/")
    _tell(options, made)
    if made["error"]:
        print(f"interlock: not read to its end: {made['error']}", file=sys.stderr)
    if made["refused"] and not options.json:
        answer = client.get(f"outcome-imports/{made['id']}/refused/")
        show_rows(options, answer["results"][:SHOWN_MAX], REFUSED)
        print(f"{sum(made['refused'].values()):,} rows were refused", file=sys.stderr)
    is_whole = made["state"] == "done" and not made["refused"]
    return EXIT_OK if is_whole else EXIT_REFUSED_BY_VERDICT


def show_refused(client: Client, options: argparse.Namespace) -> int:
    if options.import_id is None:
        only = {"metric": options.metric} if options.metric else {}
        return show_rows(options, client.pages("outcomes/refused/", **only), COUNTS)
    path = f"outcome-imports/{quote(options.import_id, safe='')}/refused/"
    return show_rows(options, client.pages(path), REFUSED)


def _tell(options: argparse.Namespace, made: dict[str, Any]) -> int:
    return show_json(made) if options.json else show_rows(options, [made], COLUMNS)
