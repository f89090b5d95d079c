"""The demo: a scenario on real servers with real models and traffic.

An A/B test shows that a strong classifier is more accurate than a weak one, while an A/A test at
the same time shows no difference. The winner is shipped by canary. Interlock rolls back three
canaries: a broken one, a slow one, and one that hangs for impatient users. Finally one API call
rolls back to the first version. The demo only sends requests to the API; Interlock makes all
decisions.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from embedded.demo import scenario
from embedded.demo.classifiers import load_digits, train_all
from embedded.demo.control import Control, DemoFailed
from embedded.demo.registry import MODEL, TWIN, register_all
from embedded.stack import Stack, load_stack
from embedded.state import ROOT, StateDir

RATE_PER_S = 400
KINDS = ("weak", "strong", "broken", "slow", "hanging")


@dataclass
class Users:
    """The process of the simulated users; `totals` are the totals that it printed last."""

    process: subprocess.Popen[str]
    totals: dict[str, Any] = field(default_factory=dict)

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.totals = json.loads(line)

    def wait_at_most(self, patience_ms: int) -> None:
        """Set the users' timeout in milliseconds; 0: the model's own timeout."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{patience_ms}\n")
            self.process.stdin.flush()
        except OSError as error:
            raise DemoFailed(f"the users' process has ended: {error}") from error

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def print_line(text: str = "") -> None:
    print(text, flush=True)


def run(stack: Stack, exit_when_done: bool) -> int:
    """Run the demo on a running stack; return 0 only if every step had the expected result."""
    started = time.monotonic()
    users: Users | None = None
    control: Control | None = None
    try:
        control = Control(stack)
        numbers = _register(stack, control)
        users = _send_users(stack, control, numbers["weak"])
        report = scenario.play(control, users, numbers, print_line)
        failures = report.failures(users.totals)
        _print_report(stack, report, users.totals, time.monotonic() - started)
    except (DemoFailed, httpx.HTTPError) as error:
        print_line(f"\nThe demo failed: {error}")
        failures = [str(error)]
    except KeyboardInterrupt:
        print_line("\nStopped before the end.")
        failures = ["stopped"]
        exit_when_done = True
    for failure in failures:
        print_line(f"FAILED: {failure}")
    try:
        if not exit_when_done:
            _keep_serving(stack)
    finally:
        if users is not None:
            users.stop()
        if control is not None:
            control.close()
    return 1 if failures else 0


def _register(stack: Stack, control: Control) -> dict[str, int]:
    """Train, log and register the classifiers; return the version number of each kind."""
    print_line("\n== Five classifiers of handwritten digits ==")
    known = _registered(control)
    if known is None:
        print_line("training on scikit-learn's digits …")
        digits = load_digits()
        classifiers = train_all(digits)
        for classifier in classifiers:
            print_line(
                f"  {classifier.kind:<7} accuracy {classifier.accuracy:.1%} on held-out images"
            )
        print_line("waiting for MLflow, then logging runs and registering versions …")
        _wait_for_mlflow(stack)
        register_all(classifiers, digits, stack.env)
        control.sync()
        control.wait_for("models/", lambda _: _registered(control) is not None)
        known = _registered(control)
    if known is None:
        raise DemoFailed("the five versions were not imported from MLflow")
    for kind, number in known.items():
        print_line(f"  {MODEL}:{number} is {kind}")
    return known


def _registered(control: Control) -> dict[str, int] | None:
    if {MODEL, TWIN} - {model["name"] for model in control.get("models/")["results"]}:
        return None
    rows = control.get(f"models/{MODEL}/versions/")["results"]
    numbers = {row["parameters"].get("kind"): row["number"] for row in rows}
    return {kind: numbers[kind] for kind in KINDS} if set(KINDS) <= set(numbers) else None


def _wait_for_mlflow(stack: Stack) -> None:
    """Wait without a time limit, as the stack does; the stack prints its progress."""
    while True:
        try:
            if httpx.get(f"{stack.urls.mlflow}/health", timeout=30).is_success:
                return
        except httpx.HTTPError:
            pass
        if load_stack(StateDir(Path(stack.state_dir))) is None:
            raise DemoFailed("the stack has ended while MLflow was starting")
        time.sleep(1)


def _send_users(stack: Stack, control: Control, weak: int) -> Users:
    """Make the weak version stable, then start the users."""
    print_line("\n== The first version ==")
    scenario.prepare(control)
    scenario.make_stable(control, MODEL, weak, print_line)
    scenario.make_stable(control, TWIN, 1, print_line)
    command = [sys.executable, "-m", "embedded.demo.traffic", stack.urls.dataplane]
    process = subprocess.Popen(
        [*command, str(RATE_PER_S)],
        cwd=ROOT,
        env=stack.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    users = Users(process)
    threading.Thread(target=users.listen, daemon=True).start()
    print_line(
        f"users send up to {RATE_PER_S} images a second through {stack.urls.dataplane}, "
        "fewer on a busy machine"
    )
    return users


def _print_report(
    stack: Stack, report: scenario.Report, totals: dict[str, Any], took_s: float
) -> None:
    print_line("\n== Results ==")
    for row in report.rows:
        print_line(f"  {row.name:<34} {row.outcome:<12} {row.took_s:6.1f} s  {row.reason}")
    print_line(
        f"  requests {totals['requests']:,}, errors at clients {totals['errors']}, "
        f"timeouts of impatient users {totals['given_up']:,}, "
        f"outcomes {totals['outcomes']:,}, p50 {totals['p50_ms']:.1f} ms, "
        f"p95 {totals['p95_ms']:.1f} ms, by version {totals['by_version']}"
    )
    print_line(f"  total time {took_s:.0f} s")
    print_line(f"\n  web UI      {stack.urls.web}   ({stack.admin_username})")
    print_line(f"  predictions {stack.urls.dataplane}/v2/models/{MODEL}/infer")
    print_line(f"  MLflow      {stack.urls.mlflow}")


def _keep_serving(stack: Stack) -> None:
    print_line("\nThe stack keeps serving; Ctrl-C stops everything.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print_line("stopping …")
