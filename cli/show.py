"""Functions that print responses as a table or as the API's JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from cli.client import EXIT_OK


def show_json(answer: Any) -> int:
    print(json.dumps(answer, indent=2))
    return EXIT_OK


def show_rows(options: argparse.Namespace, rows: list[dict[str, Any]], columns: list[str]) -> int:
    """Print the columns of `rows` as a table, or with `--json` the unchanged rows."""
    if options.json:
        return show_json(rows)
    table = [columns, *([_cell(row[column]) for column in columns] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    return EXIT_OK


def _cell(value: Any) -> str:
    return "-" if value in (None, "") else str(value)


def format_reason(row: Mapping[str, Any]) -> str:
    """Return a headline and, where it says more, the reason behind it."""
    headline, reason = row.get("headline") or "", row["reason"]
    is_whole = not headline or headline.lower() == reason.rstrip(".").lower()
    return reason if is_whole else f"{headline}. {reason}"
