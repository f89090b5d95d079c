"""Pages of the registry: the list, a version, retrying a deployment, syncing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from apps.lib.errors import Unavailable
from apps.models import views
from apps.models.models import (
    Alias,
    AuditEntry,
    ModelRole,
    ModelVersion,
    RefusedImport,
    Role,
)
from apps.models.registration_jobs import work_registrations
from apps.models.registry import SyncReport
from apps.models.states import DeploymentState
from tests.models.test_artifacts import save
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


def test_an_anonymous_user_must_log_in(client: Client) -> None:
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


def test_the_list_shows_stable_versions_and_refused_imports(viewer: Client) -> None:
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
    assert "Loading digits:4 on" in response.content.decode()
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


def test_an_unknown_version_is_a_404_page(viewer: Client) -> None:
    response = viewer.get("/models/digits/versions/4/")

    assert response.status_code == 404
    assert "Go to the overview" in response.content.decode()


def test_a_sync_shows_its_result(operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    report = SyncReport(imported=("digits:1",), refused=("digits:2",))
    monkeypatch.setattr(views, "sync_now", lambda: report)

    response = operator.post("/models/sync/", follow=True)

    text = response.content.decode()
    assert "Imported: digits:1." in text
    assert "Refused: digits:2" in text


def test_a_sync_shows_that_mlflow_is_unreachable(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> SyncReport:
        raise Unavailable("MLflow does not answer")

    monkeypatch.setattr(views, "sync_now", away)

    response = operator.post("/models/sync/", headers={"referer": "http://elsewhere/"})

    assert response.headers["location"] == "/models/"
    assert "MLflow does not answer" in operator.get("/models/").content.decode()


@pytest.fixture
def onnx(tmp_path: Path, settings: Any) -> SimpleUploadedFile:
    settings.ARTIFACT_DIR = tmp_path / "artifacts"
    return SimpleUploadedFile("net.onnx", save(tmp_path / "m.onnx", ["N", 4]).read_bytes())


def test_the_empty_list_explains_how_to_register_a_version(operator: Client) -> None:
    for path in ("/models/", "/"):
        assert 'href="/register/"' in operator.get(path).content.decode()
    text = operator.get("/register/?model=digits").content.decode()
    assert 'value="digits"' in text
    assert 'enctype="multipart/form-data"' in text


def test_a_file_is_registered_by_the_page(operator: Client, onnx: SimpleUploadedFile) -> None:
    form = {"model": "digits", "metrics": "accuracy = 0.97\n\nloss=1", "parameters": "C=1.0"}

    response = operator.post("/register/", {**form, "warmup": "", "file": onnx}, follow=True)

    ((page, _),) = response.redirect_chain
    assert "Waiting for a worker" in response.content.decode()
    work_registrations()
    assert "/models/digits/versions/1/" in operator.get(page).content.decode()
    version = ModelVersion.objects.get()
    assert (version.metrics, version.parameters) == ({"accuracy": 0.97, "loss": 1}, {"C": "1.0"})
    assert (version.created_by, version.artifact_uri) == ("olga", "upload:net.onnx")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({}, "Choose a file or enter a URI, not both."),
        ({"model": "a b", "uri": "models:/a/1"}, "A name has at most 100"),
        ({"metrics": "accuracy", "uri": "models:/a/1"}, "A line must be name=value"),
        ({"metrics": "accuracy=high", "uri": "models:/a/1"}, "The value is not a number"),
        ({"warmup": "[", "uri": "models:/a/1"}, "This is not JSON"),
        ({"uri": "s3://bucket/m"}, "unknown scheme in"),
        ({"semantic_tag": "one two", "uri": "models:/a/1"}, "is not a valid semantic tag"),
    ],
)
def test_an_invalid_form_is_shown_again(
    operator: Client, form: dict[str, str], message: str
) -> None:
    response = operator.post("/register/", {"model": "digits", **form})

    assert response.status_code == 400
    assert message in response.content.decode()
    assert not ModelVersion.objects.exists()


def test_the_page_says_that_a_file_is_registered_already(
    operator: Client, onnx: SimpleUploadedFile
) -> None:
    for _ in range(2):
        onnx.seek(0)
        response = operator.post("/register/", {"model": "digits", "file": onnx})
        work_registrations()
    assert "it is digits:1" in operator.get(response.url).content.decode()


def test_the_page_says_that_a_file_is_too_large_and_keeps_the_form(
    operator: Client, onnx: SimpleUploadedFile, settings: Any
) -> None:
    settings.ARTIFACT_BYTES_MAX = 10_000

    response = operator.post("/register/", {"model": "digits", "file": onnx})

    assert response.status_code == 413
    assert "larger than 10,000 bytes" in response.content.decode()
    assert 'value="digits"' in response.content.decode()


def test_only_the_upload_page_accepts_files_and_only_after_login(
    onnx: SimpleUploadedFile, operator: Client, settings: Any
) -> None:
    # The CSRF check reads the form before the view, and before authentication.
    known, anonymous = Client(enforce_csrf_checks=True), Client(enforce_csrf_checks=True)
    known.force_login(User.objects.get(username="olga"))
    for client, path in ((known, "/models/sync/"), (anonymous, "/register/")):
        client.cookies["csrftoken"] = "x" * 32
        onnx.seek(0)
        client.post(path, {"csrfmiddlewaretoken": "x" * 32, "file": onnx})
        assert not (settings.ARTIFACT_DIR / ".uploads").exists()


def test_a_viewer_cannot_register(viewer: Client, onnx: SimpleUploadedFile) -> None:
    assert 'href="/register/"' not in viewer.get("/models/").content.decode()
    assert viewer.get("/register/").status_code == 403
    assert viewer.post("/register/", {"model": "digits", "file": onnx}).status_code == 403


def test_a_renumbered_version_shows_its_number_in_mlflow(viewer: Client, settings: Any) -> None:
    settings.MLFLOW_PUBLIC_URL = "https://mlflow.example"
    make_version(make_model(), 4, source="mlflow", registry_number=3)

    text = viewer.get("/models/digits/versions/4/").content.decode()

    assert "as version 3; an upload has that number here" in text
    assert "https://mlflow.example/#/models/digits/versions/3" in text


def test_an_uploaded_version_shows_the_page_of_its_run(viewer: Client) -> None:
    make_version(make_model(), 4, run_url="https://ci.example/jobs/7")

    text = viewer.get("/models/digits/versions/4/").content.decode()

    assert '<a href="https://ci.example/jobs/7">' in text
    assert "an upload" in text


def test_an_alias_is_set_from_the_page(operator: Client) -> None:
    make_model()

    path = "/models/digits/versions/2/alias/"
    page = operator.post(path, {"alias": "candidate"}, follow=True).content.decode()

    assert "Alias candidate is set to digits:2." in page
    assert (
        "is not a valid alias" in operator.post(path, {"alias": "v7"}, follow=True).content.decode()
    )


def test_a_viewer_cannot_set_an_alias(viewer: Client) -> None:
    make_model()

    assert viewer.post("/models/digits/versions/2/alias/", {"alias": "a"}).status_code == 403
    assert 'id="set-alias"' not in viewer.get("/models/digits/versions/2/").content.decode()
