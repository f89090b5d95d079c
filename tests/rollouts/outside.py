"""External services for tests of checks: an HTTP server with scripted replies, and Prometheus.

The real one is used where the machine has it (on PATH, or in .tools/debs by `./run debs`); the
summary of a test run says so when it was not there.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from urllib.request import urlopen

from apps.lib.clock import database_now
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.models import Evaluation, Rollout
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import ANNA, make_baking, make_instance, make_model

DEBS = Path(__file__).parents[2] / ".tools" / "debs" / "usr" / "bin" / "prometheus"


@dataclass
class Reply:
    """What a service answers, and after how long."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0


@dataclass
class Service:
    """`requests` are the received requests: path, headers, body."""

    url: str
    requests: list[tuple[str, dict[str, str], bytes]]
    stop: Callable[[], None]


@contextmanager
def service(answer: Callable[[bytes], Reply]) -> Iterator[Service]:
    """Serve what `answer` makes of each body, GET or POST."""
    requests: list[tuple[str, dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            reply = answer(body)
            time.sleep(reply.wait_s)
            self.send_response(reply.status)
            for name, value in {"content-length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        do_GET = do_POST  # noqa: N815 (the server's name)

        def log_message(self, *_: Any) -> None:
            """Nothing: the tests read `requests`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    try:
        yield Service(f"http://127.0.0.1:{server.server_port}", requests, stop)
    finally:
        stop()


def says(**fields: Any) -> Reply:
    return Reply(body=json.dumps(fields).encode())


def vector(*values: str, at: float | None = None) -> Reply:
    """Return the Prometheus reply with one series per value, or without series."""
    stamp = time.time() if at is None else at
    result = [{"metric": {"n": str(n)}, "value": [stamp, v]} for n, v in enumerate(values)]
    return says(status="success", data={"resultType": "vector", "result": result})


def query_of(body: bytes) -> str:
    return parse_qs(body.decode())["query"][0]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


BINARY = shutil.which("prometheus") or (str(DEBS) if DEBS.exists() else None)
IS_REAL = "the real one" if BINARY else "a server that speaks its API"
METRICS = b"""requests_failed{model="digits",version="1"} 0.5
requests_failed{model="digits",version="2"} 0.125
"""


@dataclass
class Prometheus:
    url: str
    kill: Callable[[], None]


@contextmanager
def prometheus(directory: Path) -> Iterator[Prometheus]:
    """Start a Prometheus that knows METRICS; without the real one, what gave its answers before."""
    if BINARY is None:
        with service(_as_prometheus) as stand_in:
            yield Prometheus(stand_in.url, stand_in.stop)
        return
    with service(lambda _: Reply(body=METRICS, headers={"content-type": "text/plain"})) as scraped:
        process, url = _start(BINARY, scraped.url.removeprefix("http://"), directory)
        try:
            wait_for(lambda: b'"value"' in _read(f"{url}/api/v1/query?query=requests_failed"))
            yield Prometheus(url, process.kill)
        finally:
            process.kill()
            process.wait()


def _start(binary: str, target: str, directory: Path) -> tuple[subprocess.Popen[bytes], str]:
    config = directory / "prometheus.yml"
    config.write_text(
        "scrape_configs: [{job_name: canary, scrape_interval: 1s, scrape_timeout: 1s, "
        f"static_configs: [{{targets: ['{target}']}}]}}]"
    )
    address = f"127.0.0.1:{free_port()}"
    command = [binary, f"--config.file={config}", f"--storage.tsdb.path={directory}/data"]
    command += [f"--web.listen-address={address}", "--log.level=error"]
    return subprocess.Popen(command), f"http://{address}"


def _as_prometheus(body: bytes) -> Reply:
    """Answer as Prometheus 2.42 did."""
    query = query_of(body)
    if query == "scalar(vector(0.75))":
        scalar = {"resultType": "scalar", "result": [time.time(), "0.75"]}
        return says(status="success", data=scalar)
    if query.endswith("]"):
        return says(status="success", data={"resultType": "matrix", "result": []})
    if query.endswith("{modle}"):
        error = 'invalid parameter "query": 1:17: parse error: unexpected "}"'
        reply = {"status": "error", "errorType": "bad_data", "error": error}
        return Reply(400, json.dumps(reply).encode())
    answers = {
        "vector(0.25)": ["0.25"],
        "vector(0)/vector(0)": ["NaN"],
        "requests_failed": ["0.5", "0.125"],
        'requests_failed{model="digits",version="2"}': ["0.125"],
    }
    return vector(*answers.get(query, []))


def _read(url: str) -> bytes:
    try:
        with urlopen(url, timeout=2) as response:
            body: bytes = response.read()
            return body
    except OSError:
        return b""


def wait_for(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.05)


def make_asking(*checks: CheckDocument) -> Rollout:
    """Return a rollout whose clock runs at 5 %, with these checks alone, and asked at each look."""
    steps = tuple(StepDocument(weight_bp=weight, checks=checks) for weight in (500, 10_000))
    save_plan(document=PlanDocument(name="asking", steps=steps), is_default=True, actor=ANNA)
    make_instance()
    rollout = make_baking(make_model())
    tick_rollouts()
    return rollout


def look(rollout: Rollout) -> list[Evaluation]:
    """Let the next check be due, tick, and return its new answers in the plan's order."""
    before = set(Evaluation.objects.values_list("pk", flat=True))
    Rollout.objects.filter(pk=rollout.pk).update(next_check_at=database_now())
    tick_rollouts()
    rollout.refresh_from_db()
    return list(Evaluation.objects.exclude(pk__in=before).order_by("pk"))
