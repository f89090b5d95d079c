"""Functions that wait until a rollout or a release ends; the exit code is the verdict."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from cli.client import (
    EXIT_OK,
    EXIT_REFUSED_BY_VERDICT,
    EXIT_TIMED_OUT,
    EXIT_UNREACHABLE,
    ApiError,
    Client,
)
from cli.show import format_reason, show_json

POLL_S = 1.0
# The interval at which a wait checks that the control plane's loops still run.
STATUS_EVERY_S = 15.0


def add_waiting(parser: argparse.ArgumentParser) -> None:
    """Add `--wait` and `--timeout`."""
    parser.add_argument("--wait", action="store_true", help="wait for the verdict")
    parser.add_argument("--timeout", type=float, metavar="S", help="wait at most S seconds")


def wait(client: Client, path: str, answer: dict[str, Any], options: argparse.Namespace) -> int:
    """Poll the rollout or release at `path` until it ends; print changes; return the exit code."""
    started = time.monotonic()
    printed: dict[str, Any] = {}
    stopped, next_status = "", started + STATUS_EVERY_S
    while True:
        rollouts = rollouts_of(answer)
        for rollout in rollouts:
            now = (rollout["phase"], rollout["weight_bp"], rollout["revision"])
            if now != printed.get(rollout["id"]) and not options.json:
                print_rollout(rollout)
            printed[rollout["id"]] = now
        live = [rollout for rollout in rollouts if rollout["is_live"]]
        if not live:
            return _verdict(answer, options)
        if options.timeout is not None and time.monotonic() - started > options.timeout:
            print(
                f"interlock: still {live[0]['phase']} after {options.timeout:g} s; "
                "the rollout continues",
                file=sys.stderr,
            )
            return EXIT_TIMED_OUT
        if time.monotonic() > next_status:
            stopped = _print_stopped_loops(client, stopped)
            next_status = time.monotonic() + STATUS_EVERY_S
        time.sleep(POLL_S)
        answer = _poll(client, path, answer)


def rollouts_of(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a release's rollouts, or the rollout itself."""
    rollouts: list[dict[str, Any]] = answer.get("rollouts", [answer])
    return rollouts


def print_rollout(rollout: dict[str, Any]) -> None:
    """Print a rollout's phase, share and reason in one line."""
    share = rollout["weight_bp"] / 100
    name = f"{rollout['model']}:{rollout['target']}"
    print(f"{name} {rollout['phase']} at {share:g} %: {format_reason(rollout)}", flush=True)


def _print_stopped_loops(client: Client, last: str) -> str:
    """Print on stderr which loops have stopped, unless `last` is that text; return the text."""
    try:
        status = client.get("status/")
    except ApiError:
        # `_poll` reports an unreachable control plane.
        return last
    late = [f"{row['turned_by']}: {row['without_it']}" for row in status["loops"] if row["is_late"]]
    text = "; ".join(filter(None, [*late, status["trouble"]]))
    if text and text != last:
        print(f"interlock: loops of the control plane have stopped: {text}", file=sys.stderr)
    return text


def _poll(client: Client, path: str, last: dict[str, Any]) -> dict[str, Any]:
    """Fetch the row again; return `last` while the control plane is unreachable."""
    try:
        answer: dict[str, Any] = client.get(path)
    except ApiError as error:
        if error.exit_code != EXIT_UNREACHABLE:
            raise
        print(f"interlock: {error}; retrying", file=sys.stderr)
        return last
    return answer


def _verdict(answer: dict[str, Any], options: argparse.Namespace) -> int:
    if options.json:
        show_json(answer)
    ends = {rollout["phase"] for rollout in rollouts_of(answer)}
    return EXIT_OK if ends == {"succeeded"} else EXIT_REFUSED_BY_VERDICT
