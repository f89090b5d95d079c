"""`interlock experiment power`: how many units a draft needs, and in how many days."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from cli.client import EXIT_OK, EXIT_REFUSED_BY_VERDICT, Client
from cli.show import show_json, show_rows

SIZES = ["reading", "units", "control_units", "days"]
CURVE = ["days", "units", "fixed-horizon", "sequential"]
GUARDRAILS = ["metric", "margin", "units", "days", "reason"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what may be asked of a plan."""
    effect = parser.add_mutually_exclusive_group()
    effect.add_argument("--effect", type=float, help="to find, in the metric's own unit")
    effect.add_argument("--relative", type=float, metavar="PERCENT", help="to find (default: 5)")
    parser.add_argument("--power", type=float, metavar="PERCENT", help="chance (default: 80)")
    parser.add_argument("--mean", type=float, help="the baseline, if it has no past")
    parser.add_argument("--sd", type=float, help="the spread of units' values, if it has no past")
    told = "make what the planned end needs the draft's planned units"
    parser.add_argument("--apply", action="store_true", help=told)


def plan(client: Client, options: argparse.Namespace) -> int:
    """Print the plan; exit 1 when nothing can be said."""
    path = f"experiments/{quote(options.experiment, safe='')}/"
    found = client.get(f"{path}power/", **_asked(options))
    units = found["sizes"][0]["units"] if found.get("sizes") else None
    if options.apply and units is not None:
        client.change("PATCH", path, {"planned_units": units})
    if options.json:
        show_json(found)
    else:
        _tell(options, found)
        if options.apply and units is not None:
            print(f"\n{options.experiment} is planned with {units:,} units now")
    return EXIT_OK if units is not None else EXIT_REFUSED_BY_VERDICT


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    asked = {
        "effect": options.effect,
        "relative": _share(options.relative),
        "power": _share(options.power),
        "mean": options.mean,
        "sd": options.sd,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100.0


def _tell(options: argparse.Namespace, found: Mapping[str, Any]) -> None:
    print(f"traffic: {found['traffic']['told']}")
    if found["reason"]:
        print(f"no size: {found['reason']}")
        return
    baseline = found["baseline"]
    spread = "" if baseline["sd"] is None else f", sd {baseline['sd']:.6g}"
    print(f"baseline: {found['metric']} {baseline['mean']:.6g}{spread} ({baseline['source']})")
    if found.get("note"):
        print(f"note: {found['note']}")
    relative = found["effect_relative"]
    told = "" if relative is None else f" ({relative:+.3g} relative)"
    print(f"to find {found['effect']:+.6g}{told} with a chance of {found['power']:.0%}:\n")
    show_rows(options, [_short(row) for row in found["sizes"]], SIZES)
    if found["curve"]:
        print("\nsmallest effect that is found:\n")
        rows = [
            row | {"fixed-horizon": _number(row["fixed"]), "sequential": _number(row["sequential"])}
            for row in found["curve"]
        ]
        show_rows(options, rows, CURVE)
    if found["guardrails"]:
        print("\nto show that an arm like control is within the margin:\n")
        show_rows(options, [_short(row) for row in found["guardrails"]], GUARDRAILS)


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "days": _number(row["days"])}


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"
