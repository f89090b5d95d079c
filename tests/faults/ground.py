"""The real stack that all fault tests share, and methods to break it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import psycopg
import redis

from embedded.demo.control import Control
from embedded.stack import Stack
from embedded.state import ROOT
from tests.faults.artifact import write_artifact
from tests.faults.load import Question
from tests.faults.seed import MODEL, PLAN, VERSIONS

PARTS = (
    "postgres", "redis", "triton", "dataplane", "migrate", "bootstrap", "web", "worker", "beat",
    "ingest",
)  # fmt: skip
CONTROL_PLANE = ("web", "worker", "beat", "ingest")
# Short intervals for the stack's processes, so that tests do not wait long.
SETTINGS = {
    "INTERLOCK_POLL_INTERVAL_S": "0.5",
    "INTERLOCK_REPORT_INTERVAL_S": "0.5",
    "INTERLOCK_TELEMETRY_INTERVAL_S": "0.3",
    "INTERLOCK_WORKERS": "2",
    "INTERLOCK_LAME_DUCK_S": "0.1",
    "INTERLOCK_LOOP_LATE_S": "8",
}
# A part of the command line that identifies each part's leading process.
MARKS = {
    "postgres": "/postgres -D",
    "redis": "/valkey-server",
    "triton": "/tritonserver",
    "dataplane": "-m dataplane",
    "web": "-m granian",
    "worker": "controlplane.worker",
    "beat": "controlplane.beat",
    "ingest": "manage.py ingest",
}
# An optional part; no test waits for it.
MLFLOW = {"mlflow": "-m mlflow server"}
# The errors of requests to an unreachable server.
UNREACHABLE = (httpx.HTTPError, psycopg.Error, redis.RedisError)
BODY = b'{"inputs":[{"name":"features","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'


def wait_until(condition: Callable[[], Any], within_s: float, what: str) -> float:
    """Poll until `condition` holds, or fail; return the seconds. Connection errors count as no."""
    began = monotonic()
    last: object = None
    while monotonic() - began < within_s:
        try:
            last = condition()
        except (OSError, LookupError, *UNREACHABLE) as error:
            last = error
        else:
            if last:
                return monotonic() - began
        sleep(0.05)
    raise AssertionError(f"not within {within_s:g} s: {what} (last: {last!r})")


def processes(parent: int | None = None) -> dict[int, str]:
    """Return running processes with their command lines: all, or the children of `parent`."""
    commands = {}
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if entry.name.isdigit() and fields[0] not in "ZX" and parent in (None, int(fields[1])):
            commands[int(entry.name)] = command
    return commands


class Ground:
    """The shared stack: its state, its faults and its rollouts."""

    def __init__(self, stack: Stack, artifacts: Sequence[Path] = ()) -> None:
        """Register a model with one artifact per version, or one for all versions by default."""
        self.stack = stack
        self.state = Path(stack.state_dir)
        self.port = stack.ports["dataplane"]
        self.triton = f"127.0.0.1:{stack.ports['triton_http']}"
        artifacts = artifacts or [write_artifact(self.state / "flowers.onnx")]
        self.artifact = artifacts[0]
        self.question = Question(self.artifact)
        command = [sys.executable, "-m", "tests.faults.seed", *map(str, artifacts)]
        subprocess.run(command, cwd=ROOT, env=stack.env, check=True)
        self.control = Control(stack)

    # --- breaking things -----------------------------------------------------------------------

    def pid(self, part: str) -> int:
        """Return the pid of the part's leading process. Raises LookupError if there is none."""
        for pid, command in processes(self.stack.pid).items():
            if (MARKS | MLFLOW)[part] in command:
                return pid
        raise LookupError(part)

    def kill(self, *parts: str) -> float:
        """Send SIGKILL to the leading process of each part; return the monotonic time."""
        pids = [self.pid(part) for part in parts]
        at = monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return at

    def kill_with_children(self, part: str) -> float:
        """Send SIGKILL to the part's leading process and its children; return the time."""
        leader = self.pid(part)
        at = monotonic()
        for pid in [leader, *processes(leader)]:
            os.kill(pid, signal.SIGKILL)
        return at

    @contextmanager
    def stopped(self, part: str) -> Iterator[float]:
        """Stop the part with all its processes (SIGSTOP) while the block runs."""
        pid = self.pid(part)
        os.killpg(pid, signal.SIGSTOP)
        try:
            yield monotonic()
        finally:
            os.killpg(pid, signal.SIGCONT)

    @contextmanager
    def full_redis(self) -> Iterator[float]:
        """Make Redis refuse all writes that need memory while the block runs."""
        with self.redis() as client:
            client.config_set("maxmemory", 1)
        try:
            yield monotonic()
        finally:
            with self.redis() as client:
                client.config_set("maxmemory", 0)

    def kill_model_process(self, triton_model: str) -> float:
        """Send SIGKILL to the process in which Triton runs one version; return the time."""
        for pid, command in processes().items():
            if f"{self.state}/triton/repository/{triton_model}/" in command:
                os.kill(pid, signal.SIGKILL)
                return monotonic()
        raise LookupError(triton_model)

    def tree(self, pid: int) -> list[int]:
        """Return the process and all its descendants, parents first."""
        return [pid, *(each for child in processes(pid) for each in self.tree(child))]

    @contextmanager
    def frozen(self, pids: Sequence[int]) -> Iterator[float]:
        """Stop the processes (SIGSTOP) while the block runs; they may be killed meanwhile."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield monotonic()
        finally:
            for pid in reversed(pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def tick(self, for_s: float) -> None:
        """Run the workers' ticks in a process that needs no broker."""
        command = [sys.executable, "-m", "tests.faults.tick", str(for_s)]
        subprocess.run(command, cwd=ROOT, env=self.stack.env, check=True)

    # --- queries -------------------------------------------------------------------------------

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Query PostgreSQL."""
        with psycopg.connect(self.stack.database_url, connect_timeout=2) as connection:
            return connection.execute(query, values).fetchall()  # type: ignore[arg-type]

    def counted(self) -> int:
        """Return the number of the load's requests in the control plane's tables so far."""
        query = (
            "SELECT coalesce(sum(requests), 0) FROM rollouts_telemetryrow "
            "WHERE model_name = %s AND starts_with(instance, 'local') AND variant <> 'explicit'"
        )
        return int(self.rows(query, MODEL)[0][0])

    def settled_count(self) -> int:
        """Return `counted()` after all windows of the previous test have arrived."""

        def is_still() -> bool:
            before = self.counted()
            sleep(0.8)
            return self.counted() == before

        wait_until(is_still, 40, "no window is on its way")
        return self.counted()

    def stored_outcomes(self, prefix: str) -> list[str]:
        """Return the unit of each outcome row of a test, with duplicates."""
        query = "SELECT unit FROM experiments_outcomerow WHERE unit LIKE %s"
        return [unit for (unit,) in self.rows(query, f"{prefix}-%")]

    def expect_outcomes(self, prefix: str, accepted: set[str]) -> None:
        """Assert that each accepted outcome is stored, within 40 s, exactly once."""
        wait_until(lambda: set(self.stored_outcomes(prefix)) >= accepted, 40, "outcomes arrive")
        assert sorted(self.stored_outcomes(prefix)) == sorted(accepted)

    def expect_counted(self, before: int, sent: int) -> None:
        """Assert that exactly `sent` requests are counted since `before`, within 40 s."""
        wait_until(lambda: self.counted() - before >= sent, 40, "telemetry arrives")
        assert self.counted() - before == sent

    def acked(self, path: str) -> set[str]:
        """Return the instances that serve the rollout's newest table or a later one."""
        query = (
            "SELECT name FROM rollouts_instance WHERE applied_generation >= "
            "(SELECT generation FROM rollouts_rollout WHERE id = %s)"
        )
        return {name for (name,) in self.rows(query, path.split("/")[1])}

    def token_of(self, instance: str) -> str:
        """Return a new token for an instance that a test adds to the fleet."""
        known = self.control.get("instance-tokens/?page_size=200")["results"]
        for row in known:
            if row["instance"] == instance and row["state"] == "active":
                self.control.post(f"instance-tokens/{row['id']}/revoke/")
        return str(self.control.post("instance-tokens/", {"instance": instance})["token"])

    def copy_repository(self, triton: Path) -> None:
        """Copy the stack's model repository for another Triton."""
        shutil.copytree(self.state / "triton" / "repository", triton / "repository")

    def redis(self) -> redis.Redis[bytes]:
        return redis.Redis.from_url(self.stack.redis_url, socket_timeout=2)

    # --- rollouts ------------------------------------------------------------------------------

    def start_rollout(self, target: int | None = None, plan: str = PLAN) -> str:
        """Start a rollout of another version, by default with the quick plan; return its path."""
        stable = self.control.get(f"models/{MODEL}/")["stable"]
        target = target or next(number for number in VERSIONS if number != stable)
        # An earlier test may have rolled the version back.
        again = {"overrides": ["quarantine"]}
        body = {"model": MODEL, "version": str(target), "plan": plan, **again}
        return f"rollouts/{self.control.post('rollouts/', body)['id']}/"

    def verdicts(self, path: str) -> set[str]:
        """Return all verdicts of the rollout's checks so far."""
        query = "SELECT DISTINCT verdict FROM rollouts_evaluation WHERE rollout_id = %s"
        return {verdict for (verdict,) in self.rows(query, path.split("/")[1])}

    def phase(self, path: str) -> str:
        return str(self.control.get(path)["phase"])

    def passed(self, path: str) -> bool:
        """Return whether the rollout has succeeded. Raises AssertionError if it ended otherwise.

        It queries PostgreSQL directly, as the web process may be down.
        """
        query = "SELECT phase, reason FROM rollouts_rollout WHERE id = %s"
        ((phase, reason),) = self.rows(query, path.split("/")[1])
        assert phase in ("pending", "preparing", "baking", "promoting", "succeeded"), reason
        return bool(phase == "succeeded")

    def expect_each_step_once(self, path: str) -> None:
        """Assert that the rollout's transitions are those of an undisturbed rollout."""
        query = (
            "SELECT to_state, step_index FROM rollouts_rolloutevent WHERE rollout_id = %s "
            "ORDER BY id"
        )
        before = [("pending", -1), ("preparing", -1)]
        after = [("baking", 0), ("promoting", 0), ("succeeded", 0)]
        assert self.rows(query, path.split("/")[1]) == [*before, *after]

    def target(self, path: str) -> str:
        """Return the name of the rollout's target in Triton."""
        return f"{MODEL}.{self.control.get(path)['target']}"

    # --- recovery between two tests ------------------------------------------------------------

    def settle(self, within_s: float = 60.0) -> None:
        """Wait until all parts run, all versions respond, and no rollout is live."""
        for part in MARKS:
            wait_until(lambda part=part: self.pid(part), within_s, f"{part} runs")
        wait_until(self._all_answer, within_s, "web, Redis, PostgreSQL and all versions respond")
        for rollout in self.control.get(f"rollouts/?model={MODEL}")["results"]:
            if rollout["is_live"] and rollout["kind"] != "first":
                self.control.post(f"rollouts/{rollout['id']}/abort/", {"reason": "test is over"})
        wait_until(self._is_quiet, within_s, "no rollout is live and the newest table is applied")

    def _all_answer(self) -> bool:
        with self.redis() as client:
            client.ping()
        self.rows("SELECT 1")
        httpx.get(f"{self.stack.urls.web}/healthz/ready").raise_for_status()
        model = f"{self.stack.urls.dataplane}/v2/models/{MODEL}"
        for path in ["", *(f"/versions/{number}" for number in VERSIONS)]:
            httpx.post(f"{model}{path}/infer", content=BODY).raise_for_status()
        return True

    def _is_quiet(self) -> bool:
        rollouts = self.control.get(f"rollouts/?model={MODEL}")["results"]
        newest = self.rows("SELECT max(generation) FROM rollouts_publishedtable")[0][0]
        ready = httpx.get(f"{self.stack.urls.dataplane}/v2/health/ready").json()
        live = any(rollout["is_live"] for rollout in rollouts)
        return not live and ready["generation"] == newest
