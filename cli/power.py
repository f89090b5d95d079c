"""`interlock experiment power` prints the number of units and days that a draft needs."""

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
    """Add the options of `experiment power`."""
    effect = parser.add_mutually_exclusive_group()
    effect.add_argument("--effect", type=float, help="effect to detect, in the metric's unit")
    effect.add_argument(
        "--relative",
        type=float,
        metavar="PERCENT",
        help="effect to detect, relative to the baseline (default: 5)",
    )
    parser.add_argument("--power", type=float, metavar="PERCENT", help="power (default: 80)")
    parser.add_argument(
        "--mean", type=float, help="baseline mean, for a metric without past outcomes"
    )
    parser.add_argument(
        "--sd",
        type=float,
        help="standard deviation of the units' values, for a metric without past outcomes",
    )
    help_text = "set the draft's planned units to the computed size"
    parser.add_argument("--apply", action="store_true", help=help_text)


def plan(client: Client, options: argparse.Namespace) -> int:
    """Print the plan; exit with 1 if no size can be computed."""
    path = f"experiments/{quote(options.experiment, safe='')}/"
    result = client.get(f"{path}power/", **_query(options))
    units = result["sizes"][0]["units"] if result.get("sizes") else None
    if options.apply and units is not None:
        client.change("PATCH", path, {"planned_units": units})
    if options.json:
        show_json(result)
    else:
        _print_plan(options, result)
        if options.apply and units is not None:
            print(f"\n{options.experiment} is now planned with {units:,} units")
    return EXIT_OK if units is not None else EXIT_REFUSED_BY_VERDICT


def _query(options: argparse.Namespace) -> dict[str, Any]:
    query = {
        "effect": options.effect,
        "relative": _share(options.relative),
        "power": _share(options.power),
        "mean": options.mean,
        "sd": options.sd,
    }
    return {name: value for name, value in query.items() if value is not None}


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100.0


def _print_plan(options: argparse.Namespace, result: Mapping[str, Any]) -> None:
    print(f"traffic: {result['traffic']['summary']}")
    if result["reason"]:
        print(f"no size: {result['reason']}")
        return
    baseline = result["baseline"]
    spread = "" if baseline["sd"] is None else f", sd {baseline['sd']:.6g}"
    print(f"baseline: {result['metric']} {baseline['mean']:.6g}{spread} ({baseline['source']})")
    if result.get("note"):
        print(f"note: {result['note']}")
    relative = result["effect_relative"]
    relative_note = "" if relative is None else f" ({relative:+.3g} relative)"
    print(
        f"to detect {result['effect']:+.6g}{relative_note} with a power of {result['power']:.0%}:\n"
    )
    show_rows(options, [_short(row) for row in result["sizes"]], SIZES)
    if result["curve"]:
        print("\nsmallest detectable effect:\n")
        rows = [
            row | {"fixed-horizon": _number(row["fixed"]), "sequential": _number(row["sequential"])}
            for row in result["curve"]
        ]
        show_rows(options, rows, CURVE)
    if result["guardrails"]:
        print("\nto show that an arm equal to control is within the margin:\n")
        show_rows(options, [_short(row) for row in result["guardrails"]], GUARDRAILS)


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "days": _number(row["days"])}


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"
