"""The demo: real servers, real models, real traffic, and stories told as they happen.

An A/B test finds that a strong classifier is more accurate than a weak one, while an A/A test
beside it finds nothing; the winner is shipped, by canary; a broken one, a slow one and one that
hangs for impatient users are rolled back by Interlock itself; one call goes back. Nothing is
scripted but the requests to the API: every decision is the product's own.
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
class Crowd:
    """The users' process; `totals` is what they last told."""

    process: subprocess.Popen[str]
    totals: dict[str, Any] = field(default_factory=dict)

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.totals = json.loads(line)

    def wait_at_most(self, patience_ms: int) -> None:
        """Have users wait so long for each answer from now on; 0: as long as the model may take."""
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


def say(text: str = "") -> None:
    print(text, flush=True)


def run(stack: Stack, exit_when_done: bool) -> int:
    """Tell the stories on a running stack; return 0 only if all of it happened as told."""
    started = time.monotonic()
    crowd: Crowd | None = None
    control: Control | None = None
    try:
        control = Control(stack)
        numbers = _register(stack, control)
        crowd = _send_users(stack, control, numbers["weak"])
        told = scenario.play(control, crowd, numbers, say)
        failures = told.failures(crowd.totals)
        _table(stack, told, crowd.totals, time.monotonic() - started)
    except (DemoFailed, httpx.HTTPError) as error:
        say(f"\nThe demo did not go as told: {error}")
        failures = [str(error)]
    except KeyboardInterrupt:
        say("\nStopped before the end.")
        failures = ["stopped"]
        exit_when_done = True
    for failure in failures:
        say(f"NOT AS TOLD: {failure}")
    try:
        if not exit_when_done:
            _keep_serving(stack)
    finally:
        if crowd is not None:
            crowd.stop()
        if control is not None:
            control.close()
    return 1 if failures else 0


def _register(stack: Stack, control: Control) -> dict[str, int]:
    """Train, log and register the five; return the version number of each kind."""
    say("\n== Five classifiers of handwritten digits ==")
    known = _registered(control)
    if known is None:
        say("training on scikit-learn's digits …")
        digits = load_digits()
        classifiers = train_all(digits)
        for classifier in classifiers:
            say(f"  {classifier.kind:<7} accuracy {classifier.accuracy:.1%} on held-out images")
        say("waiting for MLflow, then logging runs and registering versions …")
        _wait_for_mlflow(stack)
        register_all(classifiers, digits, stack.env)
        control.sync()
        control.wait_for("models/", lambda _: _registered(control) is not None)
        known = _registered(control)
    if known is None:
        raise DemoFailed("the five versions were not imported from MLflow")
    for kind, number in known.items():
        say(f"  {MODEL}:{number} is the {kind} one")
    return known


def _registered(control: Control) -> dict[str, int] | None:
    if {MODEL, TWIN} - {model["name"] for model in control.get("models/")["results"]}:
        return None
    rows = control.get(f"models/{MODEL}/versions/")["results"]
    found = {row["parameters"].get("kind"): row["number"] for row in rows}
    return {kind: found[kind] for kind in KINDS} if set(KINDS) <= set(found) else None


def _wait_for_mlflow(stack: Stack) -> None:
    """Wait as long as the stack does, which says on the terminal how it fares."""
    while True:
        try:
            if httpx.get(f"{stack.urls.mlflow}/health", timeout=30).is_success:
                return
        except httpx.HTTPError:
            pass
        if load_stack(StateDir(Path(stack.state_dir))) is None:
            raise DemoFailed("the stack has ended while MLflow was starting")
        time.sleep(1)


def _send_users(stack: Stack, control: Control, weak: int) -> Crowd:
    """Make the weak one stable, then let the users in."""
    say("\n== The first version ==")
    scenario.prepare(control)
    scenario.make_stable(control, MODEL, weak, say)
    scenario.make_stable(control, TWIN, 1, say)
    command = [sys.executable, "-m", "embedded.demo.traffic", stack.urls.dataplane]
    process = subprocess.Popen(
        [*command, str(RATE_PER_S)],
        cwd=ROOT,
        env=stack.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    crowd = Crowd(process)
    threading.Thread(target=crowd.listen, daemon=True).start()
    say(
        f"users send up to {RATE_PER_S} images a second through {stack.urls.dataplane}, "
        "fewer where the machine is busy"
    )
    return crowd


def _table(stack: Stack, told: scenario.Told, totals: dict[str, Any], took_s: float) -> None:
    say("\n== What happened ==")
    for row in told.rows:
        say(f"  {row.what:<34} {row.outcome:<12} {row.took_s:6.1f} s  {row.reason}")
    say(
        f"  requests {totals['requests']:,}, errors seen by clients {totals['errors']}, "
        f"given up by impatient users {totals['given_up']:,}, "
        f"outcomes {totals['outcomes']:,}, p50 {totals['p50_ms']:.1f} ms, "
        f"p95 {totals['p95_ms']:.1f} ms, by version {totals['by_version']}"
    )
    say(f"  all of it took {took_s:.0f} s")
    say(f"\n  web UI      {stack.urls.web}   ({stack.admin_username})")
    say(f"  predictions {stack.urls.dataplane}/v2/models/{MODEL}/infer")
    say(f"  MLflow      {stack.urls.mlflow}")


def _keep_serving(stack: Stack) -> None:
    say("\nIt keeps serving; Ctrl-C stops everything.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        say("stopping …")
