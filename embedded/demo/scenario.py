"""The demo's acts: what is asked of Interlock, what is waited for, and what must have happened."""

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

Say = Callable[[str], None]

PLAN = "demo"
# The default plan's steps, with its 30 minutes shortened to 6 seconds.
PLAN_BODY: dict[str, Any] = {
    "description": "The default canary, with minutes made fifths of seconds",
    "time_scale_permille": 3,
    "interval_s": 2,
    # On a machine that stalls, stalls must be told from the canary's doing: it takes minutes.
    "extend_max": 600,
    # Nobody watches for longer than that.
    "wait_max_s": 0,
    "reference_requests_min": 2_000,
    # Two busy cores shared with everything else: jitter of this size means nothing here.
    "latency_slack_us": 20_000,
    "steps": [{"weight_bp": bp} for bp in (500, 1_000, 2_500, 5_000)],
    "holdback_bp": 500,
    "final_bake_s": 1_800,
}
# Load and try out at 0 %, reachable by its number, then switch at once; the old one stays warm.
BLUE_GREEN = "demo-blue-green"
BLUE_GREEN_BODY: dict[str, Any] = {
    **PLAN_BODY,
    "description": "Tried out at 0 %, then switched to at once",
    "holdback_bp": 0,
    "final_bake_s": 0,
    "steps": [
        {
            "weight_bp": 0,
            "bake_s": 600,
            "checks": [{"check": "smoke", "settings": {"requests_min": 20}}],
        },
        # Nobody is left on stable to compare with, so that a fixed bound decides.
        {
            "weight_bp": 10_000,
            "bake_s": 1_800,
            "checks": [{"check": "error-objective", "settings": {"limit_bp": 500}}],
        },
    ],
}
# What an earlier demo on the same state directory rolled back is tried again.
AGAIN = {"overrides": ["quarantine"]}
SMOKE_REQUESTS = 25
METRIC = "correct"
# One in a hundred A/A tests may be called significant, at most.
ALPHA_PPM = 10_000
# For the CLI, whose waits are bounded in any case.
SHIP_WITHIN_S = 7_200
# What the demo's models may take for an answer: users of a slow machine wait, and get one.
TIMEOUT_MS = 10_000
# Less than half of the model's timeout: that it runs out is no failure of the version and no
# evidence for its breaker, so that only the check of units without an answer can tell.
IMPATIENT_MS_MIN = 300
IMPATIENT_MS_MAX = 4_000
# Impatient users wait for so many times as long as 19 of 20 answers take at present.
IMPATIENT_TIMES = 5


class Users(Protocol):
    totals: dict[str, Any]

    def wait_at_most(self, patience_ms: int) -> None: ...


@dataclass(frozen=True)
class Row:
    """One line of the closing table."""

    what: str
    expected: str
    outcome: str
    reason: str
    took_s: float


@dataclass
class Told:
    rows: list[Row] = field(default_factory=list)

    def failures(self, totals: dict[str, Any]) -> list[str]:
        """Return in words what did not happen as told."""
        found = [
            f"{row.what}: {row.outcome} instead of {row.expected} ({row.reason})"
            for row in self.rows
            if row.outcome != row.expected
        ]
        if totals.get("errors"):
            found.append(f"clients saw {totals['errors']} errors: {totals['last_error']}")
        if totals.get("outcome_errors"):
            found.append(f"{totals['outcome_errors']} outcomes were not taken")
        return found


def play(control: Control, crowd: Users, numbers: dict[str, int], say: Say) -> Told:
    """Play all acts in order. Raises DemoFailed when something does not happen in time."""
    told = Told()
    needed = PLAN_BODY["reference_requests_min"]
    _wait_for_users(crowd, lambda totals: totals.get("requests", 0) >= needed)
    say("\n== An A/B test: is the strong one really better? And an A/A test beside it ==")
    name, *rows = _experiments(control, numbers, say)
    told.rows += rows
    say("\n== The winner is shipped: a canary that deserves it ==")
    told.rows.append(_ship_by_cli(control, name, say))
    say("\n== A canary that breaks for some people ==")
    told.rows.append(_canary(control, "broken", numbers["broken"], say))
    say("\n== A canary that is slow ==")
    told.rows.append(_canary(control, "slow", numbers["slow"], say))
    say("\n== A canary that hangs, for users who do not wait ==")
    told.rows.append(_hanging(control, crowd, numbers["hanging"], say))
    say("\n== One call back ==")
    told.rows.append(_rollback(control, numbers["weak"], say))
    say("\n== Blue and green: back to the strong one, at once ==")
    told.rows.append(_blue_green(control, numbers["strong"], say))
    return told


def _wait_for_users(crowd: Users, accept: Callable[[dict[str, Any]], bool]) -> None:
    last, changed_at = None, time.monotonic()
    while not accept(totals := crowd.totals):
        if totals != last:
            last, changed_at = totals, time.monotonic()
        if time.monotonic() > changed_at + STILL_S:
            raise DemoFailed(f"the users do nothing any more: {totals}")
        time.sleep(0.5)


def prepare(control: Control) -> None:
    """Make the plan and the metric; the users' first outcomes already name it."""
    control.ensure("plans/", PLAN, PLAN_BODY)
    control.ensure("plans/", BLUE_GREEN, BLUE_GREEN_BODY)
    control.ensure("metrics/", METRIC, {"kind": "proportion", "direction": "increase"})


def make_stable(control: Control, name: str, number: int, say: Say) -> None:
    """Make `number` stable at once, whatever an earlier demo left; returns when it serves."""
    _end_what_is_live(control, name)
    model = control.patch(f"models/{name}/", {"timeout_ms": TIMEOUT_MS})
    if model["stable"] == number:
        return
    body = {"model": name, "version": str(number), "plan": PLAN, **AGAIN}
    rollout = control.post("rollouts/", body)
    if model["stable"] is not None:
        path = f"rollouts/{rollout['id']}/"
        control.wait_for(path, lambda now: now["phase"] == "baking")
        control.post(f"{path}promote/", {"reason": "the demo begins again"})
    _follow(control, rollout, say)


def _end_what_is_live(control: Control, model: str) -> None:
    """End what a demo that was broken off left behind."""
    for rollout in control.get(f"rollouts/?model={model}")["results"]:
        if rollout["is_live"]:
            path = f"rollouts/{rollout['id']}/"
            control.post(f"{path}abort/", {"reason": "the demo begins again"})
            control.wait_for(path, lambda now: not now["is_live"])
    for state in ("preparing", "running", "paused"):
        for experiment in control.get(f"experiments/?model={model}&state={state}")["results"]:
            path = f"experiments/{experiment['name']}/stop/"
            control.post(path, {"reason": "the demo begins again"})


def _follow(control: Control, rollout: dict[str, Any], say: Say) -> dict[str, Any]:
    seen: set[tuple[Any, ...]] = set()

    def watch(now: dict[str, Any]) -> None:
        key = (now["phase"], now["weight_bp"])
        if key not in seen:
            seen.add(key)
            share = now["weight_bp"] / 100
            target, reason = f"{now['model']}:{now['target']}", now["reason"][:160]
            say(f"  {target} {now['phase']} at {share:g} %: {reason}")

    ended: dict[str, Any] = control.wait_for(
        f"rollouts/{rollout['id']}/",
        lambda now: not now["is_live"],
        watch=watch,
    )
    return ended


def _ship_by_cli(control: Control, name: str, say: Say) -> Row:
    """Turn the experiment's winner into a rollout as a pipeline would; the exit code tells."""
    arguments = ["experiment", "ship", name, "--plan", PLAN, "--override", "quarantine"]
    arguments += ["--wait", "--timeout", str(SHIP_WITHIN_S)]
    say(f"$ interlock {' '.join(arguments)}")
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
    _explain(control, last, say)
    outcome = last["phase"] if done.returncode == 0 else f"exit {done.returncode}"
    took_s = time.monotonic() - started
    return Row("winner shipped by canary, by CLI", "succeeded", outcome, last["reason"], took_s)


def _canary(control: Control, kind: str, number: int, say: Say) -> Row:
    started = time.monotonic()
    body = {"model": MODEL, "version": str(number), "plan": PLAN, **AGAIN}
    ended = _follow(control, control.post("rollouts/", body), say)
    took_s = time.monotonic() - started
    _explain(control, ended, say)
    return Row(f"{kind} canary", "rolled_back", ended["phase"], ended["reason"], took_s)


def _hanging(control: Control, crowd: Users, number: int, say: Say) -> Row:
    """Try a canary that answers nobody in the time that impatient users give."""
    usual_ms = IMPATIENT_TIMES * crowd.totals["p95_ms"]
    patience_ms = round(min(max(usual_ms, IMPATIENT_MS_MIN), IMPATIENT_MS_MAX))
    say(f"  users now wait {patience_ms} ms for an answer, for which the model has {TIMEOUT_MS} ms")
    _set_patience(crowd, patience_ms)
    row = _canary(control, "hanging", number, say)
    _set_patience(crowd, 0)
    if not row.reason.startswith("unanswered"):
        return replace(row, outcome=f"{row.outcome} for another reason")
    return row


def _set_patience(crowd: Users, patience_ms: int) -> None:
    crowd.wait_at_most(patience_ms)
    _wait_for_users(crowd, lambda totals: totals.get("patience_ms") == patience_ms)


def _explain(control: Control, rollout: dict[str, Any], say: Say) -> None:
    """Tell in Interlock's own words how it came to its decision, and where to see it."""
    told = control.get(f"rollouts/{rollout['id']}/explain/")
    say(f"  {told['summary']}")
    say(f"  explained at {control.stack.urls.web}/rollouts/{rollout['id']}/")


def _experiments(control: Control, numbers: dict[str, int], say: Say) -> tuple[str, Row, Row]:
    """Run an A/B test until it is significant, and an A/A test beside it; return the former's name.

    Users show held-out images; whether the answer was the true label is the outcome.
    """
    started = time.monotonic()
    stamp = int(time.time())
    real, same = f"weak-or-strong-{stamp}", f"weak-or-weak-{stamp}"
    _start_experiment(control, real, MODEL, {"weak": numbers["weak"], "strong": numbers["strong"]})
    _start_experiment(control, same, TWIN, {"weak": 1, "as-weak": 1})
    found = control.wait_for(
        f"experiments/{real}/results/",
        lambda now: bool(now["result"].get("is_significant")),
    )["result"]
    beside = control.wait_for(
        f"experiments/{same}/results/",
        lambda now: now["result"].get("state") == "ok",
    )["result"]
    control.post(f"experiments/{same}/stop/", {"reason": "it has shown what it was to show"})
    took_s = time.monotonic() - started
    for name, result in ((real, found), (same, beside)):
        say(f"  {result['verdict']}")
        say(f"  results at {control.stack.urls.web}/experiments/{name}/")
    ab = Row("A/B test of accuracy", "significant", _told(found), found["verdict"], took_s)
    aa = Row("A/A test beside it", "undecided", _told(beside), beside["verdict"], took_s)
    return real, ab, aa


def _start_experiment(control: Control, name: str, model: str, versions: dict[str, int]) -> None:
    variants = [
        {"name": kind, "version": number, "weight_bp": 5_000, "is_control": kind == "weak"}
        for kind, number in versions.items()
    ]
    body = {"model": model, "metric": METRIC, "variants": variants, "planned_units": 5_000}
    control.post("experiments/", {"name": name, **body, "alpha_ppm": ALPHA_PPM})
    control.post(f"experiments/{name}/start/")


def _told(result: dict[str, Any]) -> str:
    return "significant" if result["is_significant"] else "undecided"


def _blue_green(control: Control, number: int, say: Say) -> Row:
    """Switch to what was just rolled back, which takes saying so; smoke-test it at 0 % first."""
    started = time.monotonic()
    body = {"model": MODEL, "version": str(number), "plan": BLUE_GREEN, **AGAIN}
    rollout = control.post("rollouts/", body)
    path = f"rollouts/{rollout['id']}/"
    control.wait_for(path, lambda now: now["phase"] == "baking")
    say(f"  {SMOKE_REQUESTS} requests name version {number}, which gets 0 % of the traffic")
    for _ in range(SMOKE_REQUESTS):
        control.predict(MODEL, number)
    ended = _follow(control, rollout, say)
    _explain(control, ended, say)
    took_s = time.monotonic() - started
    return Row("blue-green switch", "succeeded", ended["phase"], ended["reason"], took_s)


def _rollback(control: Control, weak: int, say: Say) -> Row:
    """Go back; the time is from the call until every instance serves the table."""
    started = time.monotonic()
    rollout = control.post(f"rollbacks/{MODEL}/start/", {"reason": "the demo shows the way back"})
    path = f"rollouts/{rollout['id']}/"
    control.wait_for(
        "instances/",
        lambda now: all(i["applied_generation"] >= rollout["generation"] for i in now["results"]),
    )
    took_s = time.monotonic() - started
    ended = control.wait_for(path, lambda now: not now["is_live"])
    stable = control.get(f"models/{MODEL}/")["stable"]
    outcome = ended["phase"] if stable == weak else f"stable is {stable}"
    say(f"  {MODEL}:{stable} is stable again after {took_s:.2f} s")
    _explain(control, ended, say)
    return Row("instant rollback", "succeeded", outcome, ended["reason"], took_s)
