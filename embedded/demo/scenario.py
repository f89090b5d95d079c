"""The steps of the demo: requests to Interlock, waits and expected results."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from embedded.demo.control import STILL_S, Control, DemoFailed
from embedded.demo.registry import MODEL, TWIN
from embedded.state import ROOT

Print = Callable[[str], None]

PLAN = "demo"
# The default plan's steps, with its 30 minutes shortened to 6 seconds.
PLAN_BODY: dict[str, Any] = {
    "description": "The default canary, 300 times as fast",
    "time_scale_permille": 3,
    "interval_s": 2,
    # On a machine that stalls it takes minutes to distinguish stalls from the canary's latency.
    "extend_max": 600,
    # Do not extend a wait for data beyond that.
    "wait_max_s": 0,
    "reference_requests_min": 2_000,
    # On two busy, shared cores jitter of this size is normal.
    "latency_slack_us": 20_000,
    "steps": [{"weight_bp": bp} for bp in (500, 1_000, 2_500, 5_000)],
    "holdback_bp": 500,
    "final_bake_s": 1_800,
}
# Load and test at 0 %, reachable by number, then switch at once; the old version stays loaded.
BLUE_GREEN = "demo-blue-green"
BLUE_GREEN_BODY: dict[str, Any] = {
    **PLAN_BODY,
    "description": "Test at 0 %, then switch at once",
    "holdback_bp": 0,
    "final_bake_s": 0,
    "steps": [
        {
            "weight_bp": 0,
            "bake_s": 600,
            "checks": [{"check": "smoke", "settings": {"requests_min": 20}}],
        },
        # No traffic is left on stable to compare with, so a fixed limit decides.
        {
            "weight_bp": 10_000,
            "bake_s": 1_800,
            "checks": [{"check": "error-objective", "settings": {"limit_bp": 500}}],
        },
    ],
}
# Allows versions again that an earlier demo in the same state directory rolled back.
AGAIN = {"overrides": ["quarantine"]}
SMOKE_REQUESTS = 25
METRIC = "correct"
# At most one in a hundred A/A tests may be significant.
ALPHA_PPM = 10_000
# The timeout of the CLI's wait.
SHIP_WITHIN_S = 7_200
# The timeout of the demo's models, long enough for a slow machine.
TIMEOUT_MS = 10_000
# Less than half of the model's timeout: such a timeout is neither a failure of the version nor
# evidence for its circuit breaker, so that only the check `unanswered` can detect it.
IMPATIENT_MS_MIN = 300
IMPATIENT_MS_MAX = 4_000
# The timeout of impatient users as a multiple of the current p95 latency.
IMPATIENT_TIMES = 5


class Users(Protocol):
    totals: dict[str, Any]

    def wait_at_most(self, patience_ms: int) -> None: ...


@dataclass(frozen=True)
class Row:
    """One line of the final table."""

    name: str
    expected: str
    outcome: str
    reason: str
    took_s: float


@dataclass
class Report:
    rows: list[Row] = field(default_factory=list)

    def failures(self, totals: dict[str, Any]) -> list[str]:
        """Return a sentence for each unexpected result."""
        failures = [
            f"{row.name}: {row.outcome} instead of {row.expected} ({row.reason})"
            for row in self.rows
            if row.outcome != row.expected
        ]
        if totals.get("errors"):
            failures.append(f"{totals['errors']} errors at clients: {totals['last_error']}")
        if totals.get("outcome_errors"):
            failures.append(f"{totals['outcome_errors']} outcomes were not accepted")
        return failures


def play(control: Control, users: Users, numbers: dict[str, int], print_line: Print) -> Report:
    """Run all steps in order. Raises DemoFailed if a step makes no progress."""
    report = Report()
    needed = PLAN_BODY["reference_requests_min"]
    _wait_for_users(users, lambda totals: totals.get("requests", 0) >= needed)
    print_line("\n== An A/B test of the strong version, and an A/A test at the same time ==")
    name, *rows = _experiments(control, numbers, print_line)
    report.rows += rows
    print_line("\n== The winner is shipped by canary ==")
    report.rows.append(_ship_by_cli(control, name, print_line))
    print_line("\n== A canary that fails for some users ==")
    report.rows.append(_canary(control, "broken", numbers["broken"], print_line))
    print_line("\n== A canary that is slow ==")
    report.rows.append(_canary(control, "slow", numbers["slow"], print_line))
    print_line("\n== A canary that hangs, with impatient users ==")
    report.rows.append(_hanging(control, users, numbers["hanging"], print_line))
    print_line("\n== A rollback with one call ==")
    report.rows.append(_rollback(control, numbers["weak"], print_line))
    print_line("\n== A blue-green switch to the strong version ==")
    report.rows.append(_blue_green(control, numbers["strong"], print_line))
    return report


def _wait_for_users(users: Users, accept: Callable[[dict[str, Any]], bool]) -> None:
    last, changed_at = None, time.monotonic()
    while not accept(totals := users.totals):
        if totals != last:
            last, changed_at = totals, time.monotonic()
        if time.monotonic() > changed_at + STILL_S:
            raise DemoFailed(f"the users make no progress: {totals}")
        time.sleep(0.5)


def prepare(control: Control) -> None:
    """Create the plans and the metric, which the users' first outcomes name."""
    control.ensure("plans/", PLAN, PLAN_BODY)
    control.ensure("plans/", BLUE_GREEN, BLUE_GREEN_BODY)
    control.ensure("metrics/", METRIC, {"kind": "proportion", "direction": "increase"})


def make_stable(control: Control, name: str, number: int, print_line: Print) -> None:
    """Make `number` stable at once, whatever an earlier demo left; return when it serves."""
    _end_live_rollouts_and_experiments(control, name)
    model = control.patch(f"models/{name}/", {"timeout_ms": TIMEOUT_MS})
    if model["stable"] == number:
        return
    body = {"model": name, "version": str(number), "plan": PLAN, **AGAIN}
    rollout = control.post("rollouts/", body)
    if model["stable"] is not None:
        path = f"rollouts/{rollout['id']}/"
        control.wait_for(path, lambda now: now["phase"] == "baking")
        control.post(f"{path}promote/", {"reason": "the demo starts again"})
    _follow(control, rollout, print_line)


def _end_live_rollouts_and_experiments(control: Control, model: str) -> None:
    """End the rollouts and experiments of an earlier demo that was interrupted."""
    for rollout in control.get(f"rollouts/?model={model}")["results"]:
        if rollout["is_live"]:
            path = f"rollouts/{rollout['id']}/"
            control.post(f"{path}abort/", {"reason": "the demo starts again"})
            control.wait_for(path, lambda now: not now["is_live"])
    for state in ("preparing", "running", "paused"):
        for experiment in control.get(f"experiments/?model={model}&state={state}")["results"]:
            path = f"experiments/{experiment['name']}/stop/"
            control.post(path, {"reason": "the demo starts again"})


def _follow(control: Control, rollout: dict[str, Any], print_line: Print) -> dict[str, Any]:
    printed: set[tuple[Any, ...]] = set()

    def watch(now: dict[str, Any]) -> None:
        key = (now["phase"], now["weight_bp"])
        if key not in printed:
            printed.add(key)
            share = now["weight_bp"] / 100
            target, reason = f"{now['model']}:{now['target']}", now["reason"][:160]
            print_line(f"  {target} {now['phase']} at {share:g} %: {reason}")

    ended: dict[str, Any] = control.wait_for(
        f"rollouts/{rollout['id']}/",
        lambda now: not now["is_live"],
        watch=watch,
    )
    return ended


def _ship_by_cli(control: Control, name: str, print_line: Print) -> Row:
    """Ship the experiment's winner with the CLI, as a pipeline would; check its exit code."""
    arguments = ["experiment", "ship", name, "--plan", PLAN, "--override", "quarantine"]
    arguments += ["--wait", "--timeout", str(SHIP_WITHIN_S)]
    print_line(f"$ interlock {' '.join(arguments)}")
    started = time.monotonic()
    environment = {
        **os.environ,
        "INTERLOCK_URL": control.stack.urls.web,
        "INTERLOCK_TOKEN": control.token,
    }
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments], cwd=ROOT, env=environment, check=False
    )
    last = control.get(f"rollouts/?model={MODEL}")["results"][0]
    _explain(control, last, print_line)
    outcome = last["phase"] if done.returncode == 0 else f"exit {done.returncode}"
    took_s = time.monotonic() - started
    return Row("winner shipped by canary, by CLI", "succeeded", outcome, last["reason"], took_s)


def _canary(control: Control, kind: str, number: int, print_line: Print) -> Row:
    started = time.monotonic()
    body = {"model": MODEL, "version": str(number), "plan": PLAN, **AGAIN}
    ended = _follow(control, control.post("rollouts/", body), print_line)
    took_s = time.monotonic() - started
    _explain(control, ended, print_line)
    return Row(f"{kind} canary", "rolled_back", ended["phase"], ended["reason"], took_s)


def _hanging(control: Control, users: Users, number: int, print_line: Print) -> Row:
    """Roll out a version that exceeds the timeout of impatient users."""
    usual_ms = IMPATIENT_TIMES * users.totals["p95_ms"]
    patience_ms = round(min(max(usual_ms, IMPATIENT_MS_MIN), IMPATIENT_MS_MAX))
    print_line(f"  the users' timeout is now {patience_ms} ms; the model's is {TIMEOUT_MS} ms")
    _set_patience(users, patience_ms)
    row = _canary(control, "hanging", number, print_line)
    _set_patience(users, 0)
    if not row.reason.startswith("unanswered"):
        return replace(row, outcome=f"{row.outcome} for another reason")
    return row


def _set_patience(users: Users, patience_ms: int) -> None:
    users.wait_at_most(patience_ms)
    _wait_for_users(users, lambda totals: totals.get("patience_ms") == patience_ms)


def _explain(control: Control, rollout: dict[str, Any], print_line: Print) -> None:
    """Print Interlock's explanation of the decision and the address of its page."""
    explanation = control.get(f"rollouts/{rollout['id']}/explain/")
    print_line(f"  {explanation['summary']}")
    print_line(f"  explained at {control.stack.urls.web}/rollouts/{rollout['id']}/")


def _experiments(
    control: Control, numbers: dict[str, int], print_line: Print
) -> tuple[str, Row, Row]:
    """Run an A/B test until it is significant, and an A/A test; return the A/B test's name.

    Users send held-out images; the outcome is whether the predicted label is correct.
    """
    started = time.monotonic()
    stamp = int(time.time())
    real, same = f"weak-or-strong-{stamp}", f"weak-or-weak-{stamp}"
    _start_experiment(control, real, MODEL, {"weak": numbers["weak"], "strong": numbers["strong"]})
    _start_experiment(control, same, TWIN, {"weak": 1, "as-weak": 1})
    ab_result = control.wait_for(
        f"experiments/{real}/results/",
        lambda now: bool(now["result"].get("is_significant")),
    )["result"]
    aa_result = control.wait_for(
        f"experiments/{same}/results/",
        lambda now: now["result"].get("state") == "ok",
    )["result"]
    control.post(f"experiments/{same}/stop/", {"reason": "the A/A test is complete"})
    took_s = time.monotonic() - started
    for name, result in ((real, ab_result), (same, aa_result)):
        print_line(f"  {result['verdict']}")
        print_line(f"  results at {control.stack.urls.web}/experiments/{name}/")
    outcome, verdict = _significance(ab_result), ab_result["verdict"]
    ab = Row("A/B test of accuracy", "significant", outcome, verdict, took_s)
    outcome, verdict = _significance(aa_result), aa_result["verdict"]
    aa = Row("A/A test", "undecided", outcome, verdict, took_s)
    return real, ab, aa


def _start_experiment(control: Control, name: str, model: str, versions: dict[str, int]) -> None:
    variants = [
        {"name": kind, "version": number, "weight_bp": 5_000, "is_control": kind == "weak"}
        for kind, number in versions.items()
    ]
    body = {"model": model, "metric": METRIC, "variants": variants, "planned_units": 5_000}
    control.post("experiments/", {"name": name, **body, "alpha_ppm": ALPHA_PPM})
    control.post(f"experiments/{name}/start/")


def _significance(result: dict[str, Any]) -> str:
    return "significant" if result["is_significant"] else "undecided"


def _blue_green(control: Control, number: int, print_line: Print) -> Row:
    """Switch back to the strong version with an override; smoke-test it at 0 % first."""
    started = time.monotonic()
    body = {"model": MODEL, "version": str(number), "plan": BLUE_GREEN, **AGAIN}
    rollout = control.post("rollouts/", body)
    path = f"rollouts/{rollout['id']}/"
    control.wait_for(path, lambda now: now["phase"] == "baking")
    print_line(f"  sending {SMOKE_REQUESTS} requests to version {number}, which has 0 % of traffic")
    for _ in range(SMOKE_REQUESTS):
        control.predict(MODEL, number)
    ended = _follow(control, rollout, print_line)
    _explain(control, ended, print_line)
    took_s = time.monotonic() - started
    return Row("blue-green switch", "succeeded", ended["phase"], ended["reason"], took_s)


def _rollback(control: Control, weak: int, print_line: Print) -> Row:
    """Roll back; measure the time from the call until every instance serves the table."""
    started = time.monotonic()
    rollout = control.post(f"rollbacks/{MODEL}/start/", {"reason": "the demo shows a rollback"})
    path = f"rollouts/{rollout['id']}/"
    control.wait_for(
        "instances/",
        lambda now: all(i["applied_generation"] >= rollout["generation"] for i in now["results"]),
    )
    took_s = time.monotonic() - started
    ended = control.wait_for(path, lambda now: not now["is_live"])
    stable = control.get(f"models/{MODEL}/")["stable"]
    outcome = ended["phase"] if stable == weak else f"stable is {stable}"
    print_line(f"  {MODEL}:{stable} is stable again after {took_s:.2f} s")
    _explain(control, ended, print_line)
    return Row("instant rollback", "succeeded", outcome, ended["reason"], took_s)
