"""A file of 218 bytes that never answers: refused by its trial, and pages do not wait for it.

The attack: a Loop of 2^62 iterations, uploaded eight times, kept every web thread busy for 160 s
and was then accepted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import onnx
import pytest
from django.contrib.auth.models import User
from onnx import TensorProto, helper

from apps.models.inspection import inspect
from apps.models.models import ModelRole, ModelVersion, Registration
from apps.models.registration_jobs import work_registrations
from controlplane.models import ApiToken
from tests.models.onnx_zoo import KINDS, save
from tests.notifications.test_kill import database_url

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).parents[2]
UPLOADS = 8
TRIAL_S = 2


def spinning(iterations: int = 2**62) -> bytes:
    """Return a model that passes its input through a loop of `iterations` iterations."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])
    body = helper.make_graph(
        [helper.make_node("Identity", [n], [f"{n}o"]) for n in ("c", "v")],
        "b",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("co", TensorProto.BOOL, []),
            helper.make_tensor_value_info("vo", TensorProto.FLOAT, None),
        ],
    )
    count = helper.make_tensor("n", TensorProto.INT64, [], [iterations])
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    graph = helper.make_graph([loop], "g", [x], [y], [count])
    opsets = [helper.make_opsetid("", 17)]
    return onnx.ModelProto.SerializeToString(
        helper.make_model(graph, opset_imports=opsets, ir_version=8)
    )


@pytest.fixture
def worker(tmp_path: Path, settings: Any) -> Iterator[None]:
    """A worker process of its own, with short limits."""
    settings.ARTIFACT_DIR = tmp_path / "artifacts"
    env = {
        **os.environ,
        "DATABASE_URL": database_url(),
        "INTERLOCK_ARTIFACT_DIR": str(settings.ARTIFACT_DIR),
        "INTERLOCK_TRIAL_S": str(TRIAL_S),
    }
    argv = [sys.executable, "-m", "tests.attacks.worker", "300"]
    process = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.communicate()


def client_of(live_server: Any) -> httpx.Client:
    user = User.objects.create_user("mallory")
    ModelRole.objects.create(user=user, role="operator")
    _, secret = ApiToken.issue(user_id=user.pk, name="ci")
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.Client(base_url=live_server.url, headers=headers, timeout=30)


def upload(client: httpx.Client, content: bytes, name: str) -> httpx.Response:
    return client.post(f"/api/v1/models/{name}/versions/", files={"file": ("m.onnx", content)})


def settled(client: httpx.Client, answer: httpx.Response, within_s: float = 120) -> dict[str, Any]:
    ends_at = monotonic() + within_s
    while not (row := client.get(answer.headers["Location"]).json())["is_settled"]:
        assert monotonic() < ends_at, row
        sleep(0.1)
    return dict(row)


def test_it_is_refused_by_its_trial_and_pages_answer(
    live_server: Any, worker: None, tmp_path: Path
) -> None:
    good = save(KINDS["fixed"], tmp_path).read_bytes()
    with client_of(live_server) as client, ThreadPoolExecutor(UPLOADS) as senders:
        began_at = monotonic()
        sent = list(senders.map(lambda n: upload(client, spinning(), f"m{n}"), range(UPLOADS)))
        sent.append(upload(client, good, "good"))
        assert [answer.status_code for answer in sent] == [202] * (UPLOADS + 1)
        # Pages answer while inspections go on.
        while Registration.objects.filter(settled_at=None).exists():
            asked_at = monotonic()
            assert client.get("/api/v1/models/").status_code == 200
            assert monotonic() - asked_at < 2.0
            assert monotonic() - began_at < 240
            sleep(0.2)
        *rows, last = [settled(client, answer) for answer in sent]
    assert {row["state"] for row in rows} == {"refused"}
    assert all("did not answer a trial request within" in r["error"]["message"] for r in rows)
    assert (last["state"], last["version"]) == ("registered", 1)
    assert [str(version) for version in ModelVersion.objects.all()] == ["good:1"]


def test_a_worker_that_is_killed_costs_a_repetition(live_server: Any, tmp_path: Path) -> None:
    good = save(KINDS["fixed"], tmp_path).read_bytes()
    with client_of(live_server) as client:
        answer = upload(client, good, "good")
        Registration.objects.update(state="inspecting", attempts=1)
        assert work_registrations() == 1
        assert settled(client, answer)["version"] == 1


def test_a_loop_that_ends_is_served(tmp_path: Path) -> None:
    assert len(spinning()) < 300
    path = tmp_path / "m.onnx"
    path.write_bytes(spinning(3))
    assert inspect(path)["signature"]["outputs"][0]["name"] == "y"


def test_the_number_of_waiting_registrations_is_limited(
    live_server: Any, settings: Any, tmp_path: Path
) -> None:
    settings.ARTIFACT_DIR = tmp_path / "artifacts"
    with client_of(live_server) as client:
        answers = [upload(client, b"x", "m").status_code for _ in range(22)]
    assert answers == [202] * 20 + [503] * 2
    assert len(list((settings.ARTIFACT_DIR / ".registrations").iterdir())) == 20
