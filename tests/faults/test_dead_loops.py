"""Worker and beat are dead: pages, health, metrics and the CLI report it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import closing

import httpx

from embedded.state import ROOT
from tests.faults.ground import Ground, wait_until


def test_a_stopped_worker_and_beat_are_reported_everywhere(ground: Ground) -> None:
    web = ground.stack.urls.web
    wait_until(lambda: httpx.get(f"{web}/healthz/loops").status_code == 200, 60, "all loops run")
    with ground.stopped("worker"), ground.stopped("beat"):
        wait_until(lambda: "tick" in late(web), 60, "the tick is late")
        with closing(log_in(ground)) as client:
            page = client.get("/").text
        ready = httpx.get(f"{web}/healthz/ready")
        authorization = {"Authorization": f"Bearer {ground.control.token}"}
        metrics = httpx.get(f"{web}/metrics", headers=authorization).text
        status = cli_health(ground)
    wait_until(
        lambda: httpx.get(f"{web}/healthz/loops").status_code == 200, 60, "all loops run again"
    )

    assert "has stopped in part" in page
    assert "no rollout moves" in page
    # The pages must stay available, so that people can abort.
    assert (ready.status_code, "tick" in ready.json()["late"]) == (200, True)
    assert 'interlock_control_loop_late{loop="tick"} 1.0' in metrics
    assert status.returncode == 1
    assert "STOPPED: no rollout moves" in status.stdout


def test_a_stopped_ingester_is_reported(ground: Ground) -> None:
    web = ground.stack.urls.web
    with ground.stopped("ingest"):
        wait_until(lambda: late(web) == ["ingest"], 60, "only the ingester is late")
    wait_until(lambda: late(web) == [], 60, "no loop is late")


def late(web: str) -> list[str]:
    names: list[str] = httpx.get(f"{web}/healthz/loops").json()["late"]
    return names


def log_in(ground: Ground) -> httpx.Client:
    client = httpx.Client(base_url=ground.stack.urls.web, follow_redirects=True)
    form = client.get("/login/").text
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', form)
    assert token
    fields = {
        "username": ground.stack.admin_username,
        "password": ground.stack.admin_password,
        "csrfmiddlewaretoken": token[1],
    }
    client.post("/login/", data=fields).raise_for_status()
    return client


def cli_health(ground: Ground) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "INTERLOCK_URL": ground.stack.urls.web,
        "INTERLOCK_TOKEN": ground.control.token,
    }
    command = [sys.executable, "-m", "cli.main", "health"]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
