"""An unauthenticated client of Triton loads a model of its own, and with it code: refused.

The attack: `POST /v2/repository/models/x/load` with a `file:1/model.py` ran it in the server.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc as by_grpc
from tritonclient.utils import InferenceServerException

from apps.identity.service_checks import check_services, open_services
from apps.lib.clock import database_now
from apps.lib.errors import InterlockError
from apps.models.models import ServingCluster
from apps.models.states import DeploymentState as State
from apps.models.triton import Endpoint
from embedded.stack import Stack, running
from embedded.triton import CONTROL_HEADER, Triton
from tests.dataplane.groups import free_port
from tests.models.onnx_zoo import KINDS, save
from tests.models.test_on_triton import place, reconcile

pytestmark = pytest.mark.django_db

CONFIG = json.dumps({"name": "x", "backend": "python", "max_batch_size": 0})
CODE = """
class TritonPythonModel:
    def initialize(self, args):
        open({marker!r}, "w").close()

    def execute(self, requests):
        return []
"""
# Other endpoints that access memory, or write a file to a path of the caller.
OTHERS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v2/repository/index", {}),
    ("POST", "/v2/repository/models/own.1/unload", {}),
    (
        "POST",
        "/v2/systemsharedmemory/region/r/register",
        {"key": "/k", "offset": 0, "byte_size": 8},
    ),
    ("GET", "/v2/systemsharedmemory/status", {}),
    ("POST", "/v2/cudasharedmemory/unregister", {}),
    ("POST", "/v2/trace/setting", {"trace_file": "/tmp/t", "trace_level": ["TIMESTAMPS"]}),
    ("POST", "/v2/models/own.1/trace/setting", {"trace_level": ["TIMESTAMPS"]}),
    ("POST", "/v2/logging", {"log_file": "/tmp/l"}),
]
OTHERS_BY_GRPC: list[tuple[str, Callable[[Any], Any]]] = [
    ("index", lambda c: c.get_model_repository_index()),
    ("unload", lambda c: c.unload_model("own.1")),
    ("memory", lambda c: c.register_system_shared_memory("r", "/k", 8)),
    ("trace", lambda c: c.update_trace_settings(settings={"trace_file": "/tmp/t"})),
    ("logging", lambda c: c.update_log_settings({"log_file": "/tmp/l"})),
]


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("triton"), {"triton"}) as stack:
        yield stack


@pytest.fixture
def cluster(triton: Stack) -> ServingCluster:
    repository = Path(triton.state_dir) / "triton" / "repository"
    return ServingCluster.objects.create(
        name="real", endpoints=[triton.urls.triton], repository_path=str(repository)
    )


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that the attacker's code creates if it runs."""
    return tmp_path / "ran"


def load(url: str, marker: Path, headers: dict[str, str]) -> httpx.Response:
    code = base64.b64encode(CODE.format(marker=str(marker)).encode()).decode()
    body = {"parameters": {"config": CONFIG, "file:1/model.py": code}}
    return httpx.post(f"{url}/v2/repository/models/x/load", json=body, headers=headers, timeout=60)


@pytest.mark.parametrize("name", ["nothing", "a guess", "in the query"])
def test_over_http(triton: Stack, marker: Path, name: str) -> None:
    headers = {CONTROL_HEADER: "guess"} if name == "a guess" else {}
    url = triton.urls.triton
    if name == "in the query":
        address = f"{url}/v2/repository/models/x/load?{CONTROL_HEADER}={triton.triton_token}"
        answer = httpx.post(address, json={})
    else:
        answer = load(url, marker, headers)
    assert (answer.status_code, marker.exists()) == (403, False)
    assert triton.triton_token not in answer.text


def test_over_grpc(triton: Stack, marker: Path) -> None:
    with by_grpc.InferenceServerClient(f"127.0.0.1:{triton.ports['triton_grpc']}") as client:
        code = CODE.format(marker=str(marker)).encode()
        with pytest.raises(InferenceServerException, match="restricted"):
            client.load_model("x", config=CONFIG, files={"file:1/model.py": code})
        assert not marker.exists()
        for _, ask in OTHERS_BY_GRPC:
            with pytest.raises(InferenceServerException, match="restricted"):
                ask(client)
        assert client.is_server_ready()


@pytest.mark.parametrize(("method", "path", "body"), OTHERS, ids=[path for _, path, _ in OTHERS])
def test_other_endpoints_are_restricted_too(
    triton: Stack, method: str, path: str, body: dict[str, Any]
) -> None:
    answer = httpx.request(method, f"{triton.urls.triton}{path}", json=body or None)
    assert (answer.status_code, "restricted" in answer.text) == (403, True)


def test_the_attack_works_with_the_token(triton: Stack, marker: Path) -> None:
    answer = load(triton.urls.triton, marker, {CONTROL_HEADER: triton.triton_token})
    assert marker.exists(), answer.text


def test_the_control_plane_deploys_with_the_token_and_not_without(
    tmp_path: Path, cluster: ServingCluster, settings: Any
) -> None:
    row = reconcile(place(cluster, "own", save(KINDS["fixed"], tmp_path)))
    assert row.state == State.READY
    settings.TRITON_TOKEN = ""
    with pytest.raises(InterlockError, match="set INTERLOCK_TRITON_TOKEN"):
        Endpoint(cluster.endpoints[0]).load(row.version)


def test_a_server_without_the_restriction_is_reported(
    tmp_path: Path, cluster: ServingCluster, admin_client: Any
) -> None:
    with unrestricted(tmp_path / "open") as url:
        ServingCluster.objects.create(name="open", endpoints=[url], repository_path="/nowhere")
        check_services()
        (service,) = open_services(database_now())
        assert (service.address, service.cluster) == (url, "open")
        page = admin_client.get("/fleet/").content.decode()
        assert "anyone who reaches it can load code" in page
        answer = admin_client.get("/api/v1/status/").json()
        assert [row["address"] for row in answer["open_services"]] == [url]
    metrics = admin_client.get("/metrics").content.decode()
    assert f'interlock_service_open{{address="{url}",kind="triton"}} 1.0' in metrics
    closed = cluster.endpoints[0]
    assert f'interlock_service_open{{address="{closed}",kind="triton"}} 0.0' in metrics


class unrestricted:  # noqa: N801  It reads as a function.
    """A real Triton, started without the restriction."""

    def __init__(self, directory: Path) -> None:
        ports = {name: free_port() for name in ("triton_http", "triton_grpc", "triton_metrics")}
        part = Triton(directory, ports, "").part(dict(os.environ))
        assert part.prepare is not None
        part.prepare()
        argv = [word for word in part.argv if "restricted" not in word]
        self._server = subprocess.Popen(
            argv, env=dict(part.env), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        self.url = f"http://127.0.0.1:{ports['triton_http']}"

    def __enter__(self) -> str:
        ends_at = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"{self.url}/v2/health/ready").is_success:
                    return self.url
            except httpx.TransportError:
                pass
            assert time.monotonic() < ends_at, "it did not start"
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._server.send_signal(signal.SIGKILL)
        self._server.wait()
