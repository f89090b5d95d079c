"""`interlock experiment` and `interlock metric`: what the pages do, and a verdict as an exit code.

Exit codes of results: 0 a variant is better; 1 nothing is significant (so far); 5 a variant or a
guardrail is worse; 6 no verdict is possible.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
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
    "\nWeights changed. Means are of all units of an arm; differences are those inside each phase, "
    "and those of quantiles inside the last one:"
)
MOVES = {
    "start": "load the variants' versions, then assign units",
    "pause": "give everybody stable for a while; units keep their variants",
    "resume": "assign units again",
    "stop": "end it; the final result follows and is frozen",
    "abandon": "end it and claim no verdict",
}
ENDED = {"completed", "failed"}
GUARDED = {"not-worse": "within the margin", "worse": "beyond the margin"}
MISMATCHES = {"srm", "unexpected-units"}


def add_experiments(commands: Any) -> None:
    """Add `experiment`, `metric` and `results`."""
    told = "list experiments, make one, and take it from draft to shipped"
    actions = add_group(commands, "experiment", told, list_experiments)
    listing = add_command(actions, "list", list_experiments, "list the experiments")
    listing.add_argument("--model", help="only those on this model")
    listing.add_argument("--state", help="only those in this state")
    add_command(actions, "show", show_experiment, "print one as JSON", "experiment")
    create = add_command(actions, "create", create_experiment, "make a draft of a file")
    create.add_argument("file", help="YAML or JSON as the API takes it; - for standard input")
    edit = add_command(actions, "edit", edit_experiment, "change a draft by a file", "experiment")
    edit.add_argument("file", help="YAML or JSON of what is to change; - for standard input")
    add_command(actions, "delete", delete_experiment, "delete a draft", "experiment")
    for name, told in MOVES.items():
        moving = add_command(actions, name, _move(name), told, "experiment")
        moving.add_argument("--reason", default="")
    told = "say how many units a draft needs, in how many days, and what it detects"
    power.add_options(add_command(actions, "power", power.plan, told, "experiment"))
    _add_ship(actions)
    told = "change the weights while it runs or is paused"
    weights = add_command(actions, "weights", change_weights, told, "experiment")
    weights.add_argument("weights", nargs="+", metavar="VARIANT=BP", help="all, to sum to 10,000")
    weights.add_argument("--reason", default="")
    told = "list what became of it, when, by whom and why"
    add_command(actions, "events", list_events, told, "experiment")
    told = "keep the present result under an address of its own"
    keep = add_command(actions, "snapshot", snapshot, told, "experiment")
    keep.add_argument("--note", default="")
    told = "list the results that were kept"
    add_command(actions, "snapshots", list_snapshots, told, "experiment")
    told = "ask for an analysis now"
    add_command(actions, "refresh", refresh, told, "experiment")
    _add_results(actions)
    _add_results(commands)
    _add_metrics(commands)


def _add_ship(actions: Any) -> None:
    told = "end it and start a rollout of the winner's version"
    shipping = add_command(actions, "ship", ship, told, "experiment")
    shipping.add_argument("--variant", help="what to ship (default: the winner)")
    shipping.add_argument("--plan", help="the plan to follow (default: the default plan)")
    shipping.add_argument("--force", action="store_true", help="despite the result; needs a reason")
    shipping.add_argument("--reason", default="")
    add_overrides(shipping)
    add_waiting(shipping)


def _add_results(commands: Any) -> None:
    told = "print an experiment's results; the exit code is the verdict"
    results = add_command(commands, "results", show_results, told, "experiment")
    form = results.add_mutually_exclusive_group()
    # The same option stands before the command as well; what is not given here leaves that alone.
    form.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
    form.add_argument("--csv", action="store_true", help="a row for each metric and variant")
    add_waiting(results)


def _add_metrics(commands: Any) -> None:
    actions = add_group(commands, "metric", "list, make and show metrics", list_metrics)
    add_command(actions, "list", list_metrics, "list the metrics")
    create = add_command(actions, "create", create_metric, "define a metric by a file")
    create.add_argument("file", help="YAML or JSON as the API takes it; - for standard input")
    add_command(actions, "show", show_metric, "print a metric as JSON", "metric")
    add_command(actions, "delete", delete_metric, "delete a metric that nothing uses", "metric")


def list_experiments(client: Client, options: argparse.Namespace) -> int:
    # `experiment` alone lists as well, and has no such options.
    asked = {name: getattr(options, name, None) for name in ("model", "state")}
    rows = client.pages("experiments/", **{name: text for name, text in asked.items() if text})
    return show_rows(options, rows, COLUMNS)


def show_experiment(client: Client, options: argparse.Namespace) -> int:
    return show_json(client.get(_path(options)))


def create_experiment(client: Client, options: argparse.Namespace) -> int:
    return _tell(options, client.post("experiments/", read_file(options.file)))


def edit_experiment(client: Client, options: argparse.Namespace) -> int:
    return _tell(options, client.change("PATCH", _path(options), read_file(options.file)))


def delete_experiment(client: Client, options: argparse.Namespace) -> int:
    client.change("DELETE", _path(options))
    return EXIT_OK


def _move(name: str) -> Command:
    def act(client: Client, options: argparse.Namespace) -> int:
        body = {"reason": options.reason}
        return _tell(options, client.post(f"{_path(options)}{name}/", body))

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
    code = _tell(options, shipped)
    if not options.json:
        print(f"rollout {shipped['rollout']}", flush=True)
    return wait(client, path, client.get(path), options) if options.wait else code


def change_weights(client: Client, options: argparse.Namespace) -> int:
    body = {"weights_bp": read_weights(options.weights), "reason": options.reason}
    return _tell(options, client.post(f"{_path(options)}weights/", body))


def read_weights(words: list[str]) -> dict[str, int]:
    """Return {variant: basis points} of `name=5000` words. Raises ApiError for another form."""
    weights: dict[str, int] = {}
    for word in words:
        name, _, weight = word.partition("=")
        if not name or not weight.isdecimal() or name in weights:
            raise ApiError(
                f"{word!r} is no weight: write VARIANT=BASIS_POINTS, each variant once",
                EXIT_BAD_REQUEST,
            )
        weights[name] = int(weight)
    return weights


def snapshot(client: Client, options: argparse.Namespace) -> int:
    kept = client.post(f"{_path(options)}snapshots/", {"note": options.note})
    return show_json(kept) if options.json else show_rows(options, [kept], SNAPSHOT_COLUMNS)


def list_events(client: Client, options: argparse.Namespace) -> int:
    """Print its history, the oldest first."""
    return show_rows(options, client.pages(f"{_path(options)}events/"), EVENT_COLUMNS)


def list_snapshots(client: Client, options: argparse.Namespace) -> int:
    return show_rows(options, client.pages(f"{_path(options)}snapshots/"), SNAPSHOT_COLUMNS)


def refresh(client: Client, options: argparse.Namespace) -> int:
    return _tell(options, client.post(f"{_path(options)}refresh/"))


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
        print(answer["result"].get("verdict") or "There are no results yet.")
        if rows := _rows(answer["result"]):
            show_rows(options, rows, RESULT_COLUMNS)
        if phases := _phases(answer["result"]):
            print(PHASES_NOTE)
            show_rows(options, phases, ["since", *(key for key in phases[0] if key != "since")])
        for line in remarks(answer["result"]):
            print(line)
    return exit_code(answer)


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Return what holds other metrics' verdicts back, and what the numbers lean on."""
    metrics = result.get("metrics", ())
    held_back = [
        f"{metric['name']}: {metric['verdict']}"
        for metric in metrics[1:]
        if metric.get("state") == "not-enough-data" and metric.get("verdict")
    ]
    return held_back + [text for metric in metrics for text in metric.get("notices") or ()]


def _wait(client: Client, path: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """Ask until it is significant or has ended with its final result; None when time is up."""
    started = time.monotonic()
    while True:
        try:
            answer: dict[str, Any] = client.get(path)
        except ApiError as error:
            if error.exit_code != EXIT_UNREACHABLE:
                raise
            print(f"interlock: {error}; trying again", file=sys.stderr)
        else:
            if is_decided(answer):
                return answer
        if options.timeout is not None and time.monotonic() - started > options.timeout:
            told = f"interlock: no verdict after {options.timeout:g} s; the experiment goes on"
            print(told, file=sys.stderr)
            return None
        time.sleep(POLL_S)


def is_decided(answer: Mapping[str, Any]) -> bool:
    """Say whether there is nothing to wait for: a verdict, or an end with its final result."""
    result = answer["result"]
    if answer["state"] == "failed" or exit_code(answer) in {EXIT_OK, EXIT_WORSE}:
        return True
    return bool(answer["state"] == "completed" and result.get("phase") == "final")


def exit_code(answer: Mapping[str, Any]) -> int:
    """Return the verdict of what the API tells of a result. What forbids a verdict comes first."""
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
    """Say whether what would be shipped, or without a winner anything, is worse somewhere."""
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
            found = compared.get(arm["name"], {})
            reading = found.get(
                "fixed" if found.get("deciding") == "fixed-horizon" else "sequential"
            )
            rows.append(
                {
                    "metric": metric["name"],
                    "arm": arm["name"],
                    "n": arm["n"],
                    "mean": _number(arm["mean"]),
                    "difference": _number(found.get("difference")),
                    "interval": _interval(reading or {}),
                    "outcome": _outcome(found),
                }
            )
    return rows


def _phases(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return when weights changed, to what, and each arm's units since; nothing if they did not."""
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


def _outcome(found: Mapping[str, Any]) -> str:
    """Return a comparison's outcome in a word; a guardrail's is held against its margin."""
    judged = found.get("non_inferiority")
    if judged is None:
        return str(found.get("outcome", "control"))
    told = GUARDED.get(judged["state"], judged["state"])
    return f"{told}, but proven worse" if judged.get("deteriorated") else str(told)


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
    made = client.post("metrics/", read_file(options.file))
    return show_json(made) if options.json else show_rows(options, [made], METRIC_COLUMNS)


def show_metric(client: Client, options: argparse.Namespace) -> int:
    return show_json(client.get(f"metrics/{segment(options.metric)}/"))


def delete_metric(client: Client, options: argparse.Namespace) -> int:
    client.change("DELETE", f"metrics/{segment(options.metric)}/")
    return EXIT_OK


def read_file(file: str) -> dict[str, Any]:
    """Return the object in a file of YAML, which JSON is as well. Raises ApiError."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        read = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ApiError(f"{file} cannot be read as YAML: {error}", EXIT_BAD_REQUEST) from None
    if not isinstance(read, dict):
        raise ApiError(f"{file} holds no object: names and their values are one", EXIT_BAD_REQUEST)
    return read


def _path(options: argparse.Namespace) -> str:
    return f"experiments/{segment(options.experiment)}/"


def _tell(options: argparse.Namespace, experiment: dict[str, Any]) -> int:
    if options.json:
        return show_json(experiment)
    stands = experiment["conclusion"] or experiment["state"]
    print(f"{experiment['name']} {stands}: {experiment['reason'] or 'a draft'}")
    return EXIT_OK
