"""A notification target or webhook check that names one of our servers is never called.

The attack: an admin of one model posted, by a notification, to Triton's unload URL of another.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.egress import AllowList, EgressPolicy
from apps.lib.errors import Invalid, Unavailable
from apps.models.models import Deployment, ModelRole, RegisteredModel, ServingCluster
from apps.models.triton import endpoints_of
from apps.notifications.delivery import deliver_due
from apps.notifications.http_post import post
from apps.notifications.models import NotificationTarget
from apps.rollouts.check_kinds import WEBHOOK, CheckDocument, require_check
from embedded.stack import running
from tests.models.onnx_zoo import KINDS, save
from tests.models.test_on_triton import place, reconcile
from tests.notifications.receivers import listening
from tests.notifications.rows import enqueue_event, make_model, make_target, reread

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running(tmp_path_factory.mktemp("triton"), {"triton"}) as stack:
        yield stack


@pytest.fixture
def victim(triton: Any, tmp_path: Path) -> Deployment:
    """A version of another model, loaded on a real Triton that only a cluster's row names."""
    repository = Path(triton.state_dir) / "triton" / "repository"
    cluster = ServingCluster.objects.create(
        name="real", endpoints=[triton.urls.triton], repository_path=str(repository)
    )
    return reconcile(place(cluster, "victim", save(KINDS["fixed"], tmp_path)))


def unload_urls(triton: Any) -> list[str]:
    path = "/v2/repository/models/victim.1/unload"
    port = urlsplit(triton.urls.triton).port
    hosts = ("127.0.0.1", "localhost", "127.1", "0x7f000001", "[::ffff:127.0.0.1]")
    return [f"http://{host}:{port}{path}" for host in hosts]


def is_served(victim: Deployment) -> bool:
    (endpoint,) = endpoints_of(victim.cluster)
    endpoint.answer(victim.version)
    return not endpoint.is_unloaded(victim.version)


def test_a_model_admin_cannot_name_it(triton: Any, victim: Deployment, client: Client) -> None:
    mallory = User.objects.create_user("mallory")
    ModelRole.objects.create(user=mallory, role="admin", model=make_model("own"))
    client.force_login(mallory)
    for url in unload_urls(triton):
        body = {"name": "x", "kind": "webhook", "model": "own", "address": url, "events": []}
        answer = client.post("/api/v1/notification-targets/", body, content_type="application/json")
        assert (answer.status_code, "own service" in answer.json()["error"]["message"]) == (
            400, True,
        ), url  # fmt: skip
    assert NotificationTarget.objects.count() == 0


def test_a_target_from_before_is_not_called(triton: Any, victim: Deployment) -> None:
    make_target("https://hooks.example/", model=RegisteredModel.objects.get(name="victim"))
    for url in unload_urls(triton):
        NotificationTarget.objects.update(address=url)
        message = enqueue_event(model="victim")
        deliver_due()
        row = reread(message)
        assert "own service Triton" in row.last_error or "no answer" in row.last_error
        row.delete()
    assert is_served(victim)


def test_a_redirect_does_not_lead_to_it(triton: Any, victim: Deployment) -> None:
    with listening() as receiver:
        receiver.status, receiver.extra = 307, {"Location": unload_urls(triton)[0]}
        make_target(receiver.url, model=victim.version.model)
        message = enqueue_event(model="victim")
        deliver_due()
        assert "redirects are not followed" in reread(message).last_error
    assert is_served(victim)


def test_a_webhook_check_does_not_call_it(triton: Any, victim: Deployment, settings: Any) -> None:
    settings.TRITON_URLS = [triton.urls.triton]
    for url in unload_urls(triton):
        with pytest.raises(Invalid, match="own service Triton"):
            require_check(CheckDocument(check=WEBHOOK, settings={"url": url}), "Step 1")
    assert is_served(victim)


def test_every_server_of_the_settings_is_ours(settings: Any, client: Client) -> None:
    settings.MLFLOW_TRACKING_URI = "http://127.0.0.1:5055"
    database = settings.DATABASES["default"]
    urls = [settings.REDIS_URL, settings.MLFLOW_TRACKING_URI, settings.DATAPLANE_URL]
    ports = [database["PORT"], *(urlsplit(url).port for url in urls)]
    for port in filter(None, ports):
        with pytest.raises(Invalid, match="own service"):
            make_target(f"http://127.0.0.1:{port}/", name=f"port-{port}")


def rebinding(answers: list[str]) -> Callable[..., Any]:
    """A resolver that answers correctly for everything except evil.example."""
    ask = socket.getaddrinfo

    def look_up(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        return ask(answers.pop(0) if host == "evil.example" else host, port, *args, **options)

    return look_up


@pytest.mark.parametrize("answers", [["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
def test_dns_rebinding_is_refused(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> None:
    policy = EgressPolicy(AllowList.parse(["127.0.0.2"]))
    with ExitStack() as stack:
        ours = stack.enter_context(listening())
        monkeypatch.setattr(socket, "getaddrinfo", rebinding(answers))
        with pytest.raises(Unavailable, match=r"nothing is sent|refused"):
            post(f"http://evil.example:{ours.port}/", {}, b"", policy=policy, timeout_s=1.0)
    assert ours.received == []
