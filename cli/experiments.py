"""`interlock experiment` and `interlock metric` manage experiments; the exit code is the verdict.

Exit codes of `results`: 0 a variant is better; 1 nothing is significant (yet); 5 a variant or a
guardrail is worse; 6 no verdict is possible.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cli import power
from cli.client import (
    EXIT_BAD_REQUEST,
    EXIT_OK,
    EXIT_REFUSED_BY_VERDICT,
    EXIT_TIMED_OUT,
    EXIT_UNREACHABLE,
    ApiError,
    Client,
)
from cli.parsing import Command, add_command, add_group, add_overrides, segment
from cli.show import show_json, show_rows
from cli.waiting import POLL_S, add_waiting, wait

EXIT_WORSE = 5
EXIT_NO_VERDICT = 6
EVENT_COLUMNS = ["at", "from_state", "to_state", "actor", "reason"]
COLUMNS = ["name", "model", "metric", "state", "conclusion", "started_at", "ended_at"]
METRIC_COLUMNS = ["name", "kind", "source", "direction", "description"]
SNAPSHOT_COLUMNS = ["id", "at", "actor", "note"]
RESULT_COLUMNS = ["metric", "arm", "n", "mean", "difference", "interval", "outcome"]
PHASES_NOTE = (
    "\nThe weights changed. Means cover all units of an arm; differences are computed within each "
    "phase, and differences of quantiles within the last phase:"
)
MOVES = {
    "start": "load the variants' versions, then assign units",
    "pause": "serve stable to all units; units keep their variants",
    "resume": "assign units again after a pause",
    "stop": "end the experiment; the final result follows and is frozen",
    "abandon": "end the experiment without a verdict",
}
ENDED = {"completed", "failed"}
GUARDED = {"not-worse": "within the margin", "worse": "beyond the margin"}
MISMATCHES = {"srm", "unexpected-units"}


def add_experiments(commands: Any) -> None:
    """Add `experiment`, `metric` and `results`."""
    help_text = "list, create, run and ship experiments"
    actions = add_group(commands, "experiment", help_text, list_experiments)
    listing = add_command(actions, "list", list_experiments, "list the experiments")
    listing.add_argument("--model", help="list only experiments on this model")
    listing.add_argument("--state", help="list only experiments in this state")
    add_command(actions, "show", show_experiment, "print an experiment as JSON", "experiment")
    create = add_command(actions, "create", create_experiment, "create a draft from a file")
    create.add_argument("file", help="YAML or JSON in the format of the API; - for standard input")
    edit = add_command(actions, "edit", edit_experiment, "change a draft from a file", "experiment")
    edit.add_argument("file", help="YAML or JSON of the fields to change; - for standard input")
    add_command(actions, "delete", delete_experiment, "delete a draft", "experiment")
    for name, help_text in MOVES.items():
        moving = add_command(actions, name, _move(name), help_text, "experiment")
        moving.add_argument("--reason", default="")
    help_text = "print the units and days that a draft needs, and the effect that it detects"
    power.add_options(add_command(actions, "power", power.plan, help_text, "experiment"))
    _add_ship(actions)
    help_text = "change the weights of a running or paused experiment"
    weights = add_command(actions, "weights", change_weights, help_text, "experiment")
    weights.add_argument(
        "weights",
        nargs="+",
        metavar="VARIANT=BP",
        help="the weights of all variants in basis points; the sum is 10,000",
    )
    weights.add_argument("--reason", default="")
    help_text = "list the events of an experiment: when, by whom and why"
    add_command(actions, "events", list_events, help_text, "experiment")
    help_text = "save the current result as a snapshot with its own address"
    keep = add_command(actions, "snapshot", snapshot, help_text, "experiment")
    keep.add_argument("--note", default="")
    help_text = "list the snapshots of results"
    add_command(actions, "snapshots", list_snapshots, help_text, "experiment")
    help_text = "request an analysis now"
    add_command(actions, "refresh", refresh, help_text, "experiment")
    _add_results(actions)
    _add_results(commands)
    _add_metrics(commands)


def _add_ship(actions: Any) -> None:
    help_text = "end the experiment and start a rollout of the winner's version"
    shipping = add_command(actions, "ship", ship, help_text, "experiment")
    shipping.add_argument("--variant", help="the variant to ship (default: the winner)")
    shipping.add_argument("--plan", help="the plan to follow (default: the default plan)")
    shipping.add_argument(
        "--force", action="store_true", help="ship despite the result; requires --reason"
    )
    shipping.add_argument("--reason", default="")
    add_overrides(shipping)
    add_waiting(shipping)


def _add_results(commands: Any) -> None:
    help_text = "print an experiment's results; the exit code is the verdict"
    results = add_command(commands, "results", show_results, help_text, "experiment")
    form = results.add_mutually_exclusive_group()
    # --json exists before the command as well: without it here, the value from there stays.
    form.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
    form.add_argument(
        "--csv", action="store_true", help="print CSV: one row per metric and variant"
    )
    add_waiting(results)


def _add_metrics(commands: Any) -> None:
    actions = add_group(commands, "metric", "list, create, show and delete metrics", list_metrics)
    add_command(actions, "list", list_metrics, "list the metrics")
    create = add_command(actions, "create", create_metric, "create a metric from a file")
    create.add_argument("file", help="YAML or JSON in the format of the API; - for standard input")
    add_command(actions, "show", show_metric, "print a metric as JSON", "metric")
    add_command(actions, "delete", delete_metric, "delete an unused metric", "metric")


def list_experiments(client: Client, options: argparse.Namespace) -> int:
    # `experiment` without an action lists too, and does not have these options.
    query = {name: getattr(options, name, None) for name in ("model", "state")}
    rows = client.pages("experiments/", **{name: text for name, text in query.items() if text})
    return show_rows(options, rows, COLUMNS)


def show_experiment(client: Client, options: argparse.Namespace) -> int:
    return show_json(client.get(_path(options)))


def create_experiment(client: Client, options: argparse.Namespace) -> int:
    return _print_experiment(options, client.post("experiments/", read_file(options.file)))


def edit_experiment(client: Client, options: argparse.Namespace) -> int:
    return _print_experiment(
        options, client.change("PATCH", _path(options), read_file(options.file))
    )


def delete_experiment(client: Client, options: argparse.Namespace) -> int:
    client.change("DELETE", _path(options))
    return EXIT_OK


def _move(name: str) -> Command:
    def act(client: Client, options: argparse.Namespace) -> int:
        body = {"reason": options.reason}
        return _print_experiment(options, client.post(f"{_path(options)}{name}/", body))

    return act


def ship(client: Client, options: argparse.Namespace) -> int:
    body = {
        "variant": options.variant,
        "plan": options.plan,
        "force": options.force,
        "reason": options.reason,
        "overrides": options.override,
    }
    shipped = client.post(f"{_path(options)}ship/", body)
    path = f"rollouts/{shipped['rollout']}/"
    if options.wait and options.json:
        return wait(client, path, client.get(path), options)
    code = _print_experiment(options, shipped)
    if not options.json:
        print(f"rollout {shipped['rollout']}", flush=True)
    return wait(client, path, client.get(path), options) if options.wait else code


def change_weights(client: Client, options: argparse.Namespace) -> int:
    body = {"weights_bp": read_weights(options.weights), "reason": options.reason}
    return _print_experiment(options, client.post(f"{_path(options)}weights/", body))


def read_weights(arguments: list[str]) -> dict[str, int]:
    """Parse `variant=5000` arguments into {variant: basis points}. Raises ApiError."""
    weights: dict[str, int] = {}
    for argument in arguments:
        name, _, weight = argument.partition("=")
        if not name or not weight.isdecimal() or name in weights:
            raise ApiError(
                f"{argument!r} is not a valid weight; "
                "expected VARIANT=BASIS_POINTS, once per variant",
                EXIT_BAD_REQUEST,
            )
        weights[name] = int(weight)
    return weights


def snapshot(client: Client, options: argparse.Namespace) -> int:
    row = client.post(f"{_path(options)}snapshots/", {"note": options.note})
    return show_json(row) if options.json else show_rows(options, [row], SNAPSHOT_COLUMNS)


def list_events(client: Client, options: argparse.Namespace) -> int:
    """Print the experiment's events, oldest first."""
    return show_rows(options, client.pages(f"{_path(options)}events/"), EVENT_COLUMNS)


def list_snapshots(client: Client, options: argparse.Namespace) -> int:
    return show_rows(options, client.pages(f"{_path(options)}snapshots/"), SNAPSHOT_COLUMNS)


def refresh(client: Client, options: argparse.Namespace) -> int:
    return _print_experiment(options, client.post(f"{_path(options)}refresh/"))


def show_results(client: Client, options: argparse.Namespace) -> int:
    path = f"{_path(options)}results/"
    answer = _wait(client, path, options) if options.wait else client.get(path)
    if answer is None:
        return EXIT_TIMED_OUT
    if options.csv:
        print(client.text(path, format="csv"), end="")
    elif options.json:
        show_json(answer)
    else:
        print(answer["result"].get("verdict") or "No results yet.")
        if rows := _rows(answer["result"]):
            show_rows(options, rows, RESULT_COLUMNS)
        if phases := _phases(answer["result"]):
            print(PHASES_NOTE)
            show_rows(options, phases, ["since", *(key for key in phases[0] if key != "since")])
        for line in [*remarks(answer["result"]), *_not_counted(answer["result"])]:
            print(line)
    return exit_code(answer)


def _not_counted(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each metric with outcomes that the analysis ignores: counts and reasons."""
    attribution = result.get("attribution") or {}
    for metric, counts in attribution.get("metrics", {}).items():
        before = f"before their unit's exposure (by {counts['before_mean_s']} s on average)"
        reasons = (
            (counts["before"], before),
            (counts["after_window"], "after the window"),
            (counts["unknown_units"], "of unknown units"),
        )
        ignored = ", ".join(f"{count:,} {reason}" for count, reason in reasons if count)
        if ignored:
            yield f"{metric}: {counts['in_time']:,} outcomes count; these do not: {ignored}"


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Return the lines under the table: undecided metrics with their reason, then all notices."""
    metrics = result.get("metrics", ())
    held_back = [
        f"{metric['name']}: {metric['verdict']}"
        for metric in metrics[1:]
        if metric.get("state") == "not-enough-data" and metric.get("verdict")
    ]
    return held_back + [text for metric in metrics for text in metric.get("notices") or ()]


def _wait(client: Client, path: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """Poll until the result is significant or final; return None at the timeout."""
    started = time.monotonic()
    while True:
        try:
            answer: dict[str, Any] = client.get(path)
        except ApiError as error:
            if error.exit_code != EXIT_UNREACHABLE:
                raise
            print(f"interlock: {error}; retrying", file=sys.stderr)
        else:
            if is_decided(answer):
                return answer
        if options.timeout is not None and time.monotonic() - started > options.timeout:
            message = f"interlock: no verdict after {options.timeout:g} s; the experiment continues"
            print(message, file=sys.stderr)
            return None
        time.sleep(POLL_S)


def is_decided(answer: Mapping[str, Any]) -> bool:
    """Return whether waiting is over: the experiment has a verdict, a final result or failed."""
    result = answer["result"]
    if answer["state"] == "failed" or exit_code(answer) in {EXIT_OK, EXIT_WORSE}:
        return True
    return bool(answer["state"] == "completed" and result.get("phase") == "final")


def exit_code(answer: Mapping[str, Any]) -> int:
    """Return the exit code of the API's results. Reasons against any verdict come first."""
    result = answer["result"]
    ratio = result.get("sample_ratio") or {}
    is_void = answer["state"] == "failed" or answer.get("conclusion") == "abandoned"
    if not result.get("metrics") or is_void or ratio.get("state") in MISMATCHES:
        return EXIT_NO_VERDICT
    if _is_worse(result):
        return EXIT_WORSE
    if result.get("winner") is not None:
        return EXIT_OK
    return EXIT_REFUSED_BY_VERDICT


def _is_worse(result: Mapping[str, Any]) -> bool:
    """Return whether the winner, or any variant if there is no winner, is worse on a metric."""
    winner = result.get("winner")
    primary, *others = result["metrics"]
    if winner is None and any(c["outcome"] == "worse" for c in primary.get("comparisons", ())):
        return True
    return any(
        (comparison.get("non_inferiority") or {}).get("state") == "worse"
        for metric in others
        for comparison in metric.get("comparisons", ())
        if winner is None or comparison["arm"] == winner
    )


def _rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for metric in result.get("metrics", ()):
        compared = {each["arm"]: each for each in metric.get("comparisons", ())}
        for arm in metric.get("arms", ()):
            comparison = compared.get(arm["name"], {})
            is_fixed = comparison.get("deciding") == "fixed-horizon"
            reading = comparison.get("fixed" if is_fixed else "sequential")
            rows.append(
                {
                    "metric": metric["name"],
                    "arm": arm["name"],
                    "n": arm["n"],
                    "mean": _number(arm["mean"]),
                    "difference": _number(comparison.get("difference")),
                    "interval": _interval(reading or {}),
                    "outcome": _outcome(comparison),
                }
            )
    return rows


def _phases(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per phase of constant weights with its units per arm; [] for one phase."""
    phases = result.get("phases") or ()
    if len(phases) < 2:
        return []
    return [
        {
            "since": phase["at"],
            **{
                name: f"{phase['weights_bp'].get(name, 0) / 100:g} %, {units:,} units"
                for name, units in phase["units"].items()
            },
        }
        for phase in phases
    ]


def _outcome(comparison: Mapping[str, Any]) -> str:
    """Return the outcome of a comparison; for a guardrail, the outcome against its margin."""
    non_inferiority = comparison.get("non_inferiority")
    if non_inferiority is None:
        return str(comparison.get("outcome", "control"))
    outcome = GUARDED.get(non_inferiority["state"], non_inferiority["state"])
    return f"{outcome}, but proven worse" if non_inferiority.get("deteriorated") else str(outcome)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"


def _interval(reading: Mapping[str, Any]) -> str | None:
    low, high = reading.get("low"), reading.get("high")
    if low is None and high is None:
        return None
    return f"{_number(low) or '-inf'} to {_number(high) or 'inf'}"


def list_metrics(client: Client, options: argparse.Namespace) -> int:
    return show_rows(options, client.pages("metrics/"), METRIC_COLUMNS)


def create_metric(client: Client, options: argparse.Namespace) -> int:
    metric = client.post("metrics/", read_file(options.file))
    return show_json(metric) if options.json else show_rows(options, [metric], METRIC_COLUMNS)


def show_metric(client: Client, options: argparse.Namespace) -> int:
    return show_json(client.get(f"metrics/{segment(options.metric)}/"))


def delete_metric(client: Client, options: argparse.Namespace) -> int:
    client.change("DELETE", f"metrics/{segment(options.metric)}/")
    return EXIT_OK


def read_file(file: str) -> dict[str, Any]:
    """Return the object in a YAML or JSON file. Raises ApiError."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        content = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ApiError(f"{file} cannot be read as YAML: {error}", EXIT_BAD_REQUEST) from None
    if not isinstance(content, dict):
        raise ApiError(f"{file} does not contain a YAML mapping", EXIT_BAD_REQUEST)
    return content


def _path(options: argparse.Namespace) -> str:
    return f"experiments/{segment(options.experiment)}/"


def _print_experiment(options: argparse.Namespace, experiment: dict[str, Any]) -> int:
    if options.json:
        return show_json(experiment)
    state = experiment["conclusion"] or experiment["state"]
    print(f"{experiment['name']} {state}: {experiment['reason'] or 'a draft'}")
    return EXIT_OK
