"""Pages of the registry: the list, a version, retrying a deployment, syncing."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.errors import Unavailable
from apps.models import views
from apps.models.models import Alias, AuditEntry, ModelRole, RefusedImport, Role
from apps.models.registry import SyncReport
from apps.models.states import DeploymentState
from tests.rollouts.factories import make_model, make_version, place

pytestmark = pytest.mark.django_db


@pytest.fixture
def viewer(client: Client) -> Client:
    client.force_login(User.objects.create_user("vera"))
    return client


@pytest.fixture
def operator(client: Client) -> Client:
    user = User.objects.create_user("olga")
    ModelRole.objects.create(user=user, role=Role.OPERATOR)
    client.force_login(user)
    return client


def test_a_stranger_is_asked_to_log_in(client: Client) -> None:
    response = client.get("/models/")

    assert response.status_code == 302
    assert response.headers["location"].startswith("/login/")


def test_the_login_page_lets_a_user_in(client: Client) -> None:
    User.objects.create_user("vera", password="railways")

    assert b'name="password"' in client.get("/login/").content
    response = client.post("/login/", {"username": "vera", "password": "railways"})

    assert response.headers["location"] == "/"


def test_the_login_page_says_that_a_password_is_wrong(client: Client) -> None:
    response = client.post("/login/", {"username": "vera", "password": "guess"})

    assert "do not match" in response.content.decode()


def test_the_list_shows_who_serves_and_what_was_refused(viewer: Client) -> None:
    model = make_model()
    Alias.objects.create(model=model, name="candidate", version=model.versions.get(number=3))
    RefusedImport.objects.create(model_name="digits", number=9, reason="it has no ONNX flavour")

    text = viewer.get("/models/").content.decode()

    assert "candidate → 3" in text
    assert "1: 100 %" in text
    assert "it has no ONNX flavour" in text


def test_the_lists_queries_do_not_grow_with_models(
    viewer: Client, django_assert_max_num_queries: Any
) -> None:
    for number in range(6):
        make_model(f"model-{number}")

    with django_assert_max_num_queries(10):
        viewer.get("/models/")


def test_a_version_shows_its_signature_metrics_and_origin(viewer: Client, settings: Any) -> None:
    settings.MLFLOW_PUBLIC_URL = "http://mlflow:5000"
    model = make_model()
    make_version(
        model, 4, metrics={"accuracy": 0.9712}, dataset_digest="5f1c", run_id="abc", tags={"a": "b"}
    )

    text = viewer.get("/models/digits/versions/4/").content.decode()

    assert "[∗, 64]" in text
    assert "0.9712" in text
    assert "5f1c" in text
    assert "http://mlflow:5000/#/runs/abc" in text


def test_a_failed_deployment_shows_the_servers_own_message_to_everybody(viewer: Client) -> None:
    version = make_version(make_model(), 4)
    place(version, DeploymentState.FAILED, "INVALID_GRAPH: <Gemm_0>")

    text = viewer.get("/models/digits/versions/4/").content.decode()

    assert "INVALID_GRAPH: &lt;Gemm_0&gt;" in text
    assert "Load again" not in text


def test_an_operator_loads_a_failed_deployment_again(operator: Client) -> None:
    deployment = place(make_version(make_model(), 4), DeploymentState.FAILED, "broken")

    response = operator.post(f"/deployments/{deployment.pk}/retry/", follow=True)

    deployment.refresh_from_db()
    assert deployment.state == DeploymentState.LOADING
    assert "is being loaded again" in response.content.decode()
    assert AuditEntry.objects.filter(actor="olga", action="deployment.retried").exists()


def test_a_viewer_may_not_load_it_again(viewer: Client) -> None:
    deployment = place(make_version(make_model(), 4), DeploymentState.FAILED, "broken")

    response = viewer.post(f"/deployments/{deployment.pk}/retry/")

    assert response.status_code == 403
    assert "needs the role operator" in response.content.decode()


def test_a_ready_deployment_is_not_retried(operator: Client) -> None:
    version = make_model().versions.get(number=1)

    response = operator.post(f"/deployments/{version.deployments.get().pk}/retry/", follow=True)

    assert "only a failed one can be retried" in response.content.decode()


def test_a_version_that_is_not_there_is_a_404_page(viewer: Client) -> None:
    response = viewer.get("/models/digits/versions/4/")

    assert response.status_code == 404
    assert "Go to the overview" in response.content.decode()


def test_syncing_tells_what_came(operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    report = SyncReport(imported=("digits:1",), refused=("digits:2",))
    monkeypatch.setattr(views, "sync_registry", lambda: report)

    response = operator.post("/models/sync/", follow=True)

    text = response.content.decode()
    assert "Imported: digits:1." in text
    assert "Refused: digits:2" in text


def test_syncing_says_when_the_registry_is_away(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> SyncReport:
        raise Unavailable("MLflow does not answer")

    monkeypatch.setattr(views, "sync_registry", away)

    response = operator.post("/models/sync/", headers={"referer": "http://elsewhere/"})

    assert response.headers["location"] == "/models/"
    assert "MLflow does not answer" in operator.get("/models/").content.decode()
