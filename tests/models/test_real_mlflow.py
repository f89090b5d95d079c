"""The MLflow client against a real MLflow server: reads, writes, downloads, webhooks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from apps.lib.actors import Actor
from apps.lib.errors import Invalid
from apps.models.aliases import move_alias
from apps.models.metadata import Metadata
from apps.models.mlflow import connect
from apps.models.models import Alias, AuditEntry, ModelVersion
from apps.models.registration import register_uri
from apps.models.registry import sync_registry
from tests.models.registries import WEBHOOK_SECRET
from tests.models.test_artifacts import save
from tests.rollouts.factories import database_now

pytestmark = [pytest.mark.e2e, pytest.mark.django_db]

READY_WITHIN_S = 240
LOG = """
import sys, mlflow, mlflow.onnx, numpy, onnx
mlflow.set_tracking_uri(sys.argv[1])
rows = numpy.zeros((2, 4), numpy.float32)
for accuracy in (0.8, 0.9):
    with mlflow.start_run():
        mlflow.log_metric("accuracy", accuracy)
        mlflow.log_param("C", 1.0)
        mlflow.log_input(mlflow.data.from_numpy(rows, name="digits"), context="training")
        mlflow.onnx.log_model(
            onnx.load(sys.argv[2]), name="net", registered_model_name="digits",
            signature=mlflow.models.infer_signature({"x": rows}, {"y": rows}),
            pip_requirements=["onnxruntime"],
        )
"""
"""Two runs of a team, as MLflow's own client logs them."""


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real tracking server with versions 1 and 2 of digits; its webhooks may come here."""
    home = tmp_path_factory.mktemp("mlflow")
    url = f"http://127.0.0.1:{_free_port()}"
    env = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }
    argv = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    argv += ["--port", url.rpartition(":")[2], "--backend-store-uri", f"sqlite:///{home}/db"]
    argv += ["--serve-artifacts", "--artifacts-destination", str(home / "artifacts")]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            argv, env=env, cwd=home, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _await(lambda: httpx.get(f"{url}/health").is_success, READY_WITHIN_S)
            model = save(home / "net.onnx", ["N", 4])
            command = [sys.executable, "-c", LOG, url, str(model)]
            subprocess.run(command, env=env, cwd=home, check=True, capture_output=True)
            yield url
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _await(ask: Callable[[], Any], within_s: float) -> None:
    ends_at = time.monotonic() + within_s
    while True:
        try:
            if ask():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < ends_at, "it took too long"
        time.sleep(0.2)


@pytest.fixture
def registry(tracking: str, settings: Any, tmp_path: Path) -> str:
    settings.MLFLOW_TRACKING_URI = tracking
    settings.ARTIFACT_DIR = tmp_path / "artifacts"
    for alias in ("champion", "candidate"):
        body = {"name": "digits", "alias": alias}
        httpx.request("DELETE", f"{tracking}/api/2.0/mlflow/registered-models/alias", json=body)
    return tracking


def named(alias: str) -> int:
    with connect() as client:
        return client.version("digits", alias).number


def set_there(alias: str, number: int) -> None:
    with connect() as client:
        client.set_alias("digits", alias, number)


def version(number: int) -> ModelVersion:
    return ModelVersion.objects.select_related("model").get(number=number)


def test_all_logged_data_is_imported(registry: str) -> None:
    assert sync_registry().imported == ("digits:1", "digits:2")
    row = version(2)
    assert (row.metrics, row.parameters) == ({"accuracy": 0.9}, {"C": "1.0"})
    assert row.dataset_digest.startswith("digits:")
    assert (row.source, row.registry_number, len(row.run_id)) == ("mlflow", 2, 32)
    assert row.created_by


def test_aliases_are_synchronised_in_both_directions(registry: str) -> None:
    set_there("candidate", 1)
    sync_registry()
    assert Alias.objects.get(name="candidate").version.number == 1
    Alias.objects.create(model=version(2).model, name="champion", version=version(2))
    move_alias(name="candidate", version=version(2), actor=Actor("anna"))
    assert sync_registry().pushed == ("digits@candidate", "digits@champion")
    assert (named("candidate"), named("champion")) == (2, 2)
    set_there("champion", 1)
    sync_registry()
    assert named("champion") == 2
    assert AuditEntry.objects.filter(action="alias.restored").count() == 1


def copy(uri: str) -> ModelVersion:
    metadata, actor = Metadata(description=uri), Actor("ci")
    return register_uri(name="copies", uri=uri, metadata=metadata, actor=actor, now=database_now())


def test_every_kind_of_mlflow_uri_is_registered(registry: str) -> None:
    with connect() as client:
        run_id = client.version("digits", "2").run_id
        [model_id] = client.run(run_id).logged_model_ids
        root = client.artifact_root("digits", 2)
    set_there("candidate", 2)
    uris = ["models:/digits/2", "models:/digits@candidate", f"models:/{model_id}"]
    uris += [f"runs:/{run_id}/net", root]
    for number, uri in enumerate(uris, start=1):
        version = copy(uri)
        assert (version.number, version.source) == (number, "uri")
        assert version.metrics == ({} if uri.startswith(root) else {"accuracy": 0.9})
    # MLflow stores its weights in a separate file.
    with pytest.raises(Invalid, match="it must be in the directory of the ONNX file"):
        copy(f"{root}/model.onnx")


@pytest.mark.django_db(transaction=True)
def test_its_webhook_queues_a_sync(registry: str, live_server: Any, queue: redis.Redis) -> None:
    path = "/api/v1/registry-webhooks/mlflow"
    body = {
        "name": "interlock",
        "url": f"{live_server.url.replace('localhost', '127.0.0.1')}{path}",
        "secret": WEBHOOK_SECRET,
        "events": [{"entity": "MODEL_VERSION_ALIAS", "action": "CREATED"}],
    }
    response = httpx.post(f"{registry}/api/2.0/mlflow/webhooks", json=body)
    assert response.is_success, response.text
    # MLflow reads new webhooks when its cache expires.
    time.sleep(1.5)
    set_there("candidate", 1)
    _await(lambda: queue.llen("celery") == 1, 30)
