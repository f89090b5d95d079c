"""Manual registration by REST: by upload and by URI, once, with metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx as onnx_library
import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from apps.models.models import AuditEntry, ModelRole, ModelVersion, RefusedImport, RegisteredModel
from apps.models.registration_jobs import work_registrations
from apps.models.registry import sync_registry
from apps.models.uploads import FORM_BYTES_MAX
from controlplane.models import ApiToken
from tests.models.registries import Mlflow
from tests.models.test_artifacts import save
from tests.rollouts.factories import make_version

pytestmark = pytest.mark.django_db

WARMUP = [[{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0.5] * 4}]]


@pytest.fixture(autouse=True)
def artifacts(tmp_path: Path, settings: Any) -> Path:
    settings.ARTIFACT_DIR = tmp_path / "artifacts"
    return tmp_path / "artifacts"


@pytest.fixture
def onnx(tmp_path: Path) -> bytes:
    return save(tmp_path / "m.onnx", ["N", 4]).read_bytes()


def caller(role: str | None = "operator", model: RegisteredModel | None = None) -> Client:
    user = User.objects.create_user("carl")
    if role:
        ModelRole.objects.create(user=user, role=role, model=model)
    _, secret = ApiToken.issue(user_id=user.pk, name="ci")
    return Client(headers={"Authorization": f"Bearer {secret}"})


def upload(client: Client, content: bytes, name: str = "digits", **values: Any) -> Any:
    headers, data = values.pop("headers", {}), values.pop("data", None)
    fields = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    form = {**fields, "file": SimpleUploadedFile("net.onnx", content)}
    form |= {"external_data": SimpleUploadedFile(*data)} if data else {}
    return settled(client, client.post(f"/api/v1/models/{name}/versions/", form, headers=headers))


def register(client: Client, uri: str, name: str = "digits", **values: Any) -> Any:
    path = f"/api/v1/models/{name}/versions/"
    return settled(
        client, client.post(path, {"uri": uri, **values}, content_type="application/json")
    )


# HTTP statuses by error code.
STATUSES = {"invalid": 400, "not_found": 404, "conflict": 409, "too_large": 413, "unavailable": 503}


@dataclass
class Result:
    """The result of a registration, in the form of a response."""

    status_code: int
    document: Any
    headers: Any

    def json(self) -> Any:
        return self.document


def settled(client: Client, answer: Any) -> Any:
    """Run the worker and return the result of the registration."""
    if answer.status_code != 202:
        return answer
    work_registrations()
    row = client.get(f"/api/v1/registrations/{answer.json()['id']}/").json()
    assert row["is_settled"]
    if row["error"]:
        return Result(STATUSES[row["error"]["code"]], row, answer.headers)
    version = client.get(f"/api/v1/models/{row['model_name']}/versions/{row['version']}/").json()
    return Result(201, version, answer.headers)


def message_of(answer: Any) -> str:
    return str(answer.json()["error"]["message"])


def test_an_upload_creates_the_model_and_its_first_version(onnx: bytes, artifacts: Path) -> None:
    answer = upload(
        caller(),
        onnx,
        metrics={"accuracy": 0.97},
        parameters={"C": "1.0"},
        dataset_digest="5f1c",
        semantic_tag="v1.2.3",
        description="from CI",
        run_url="https://ci.example/jobs/7",
        warmup=WARMUP,
    )
    row = answer.json()
    assert (answer.status_code, row["number"], row["source"]) == (201, 1, "upload")
    assert (row["metrics"], row["parameters"]) == ({"accuracy": 0.97}, {"C": "1.0"})
    assert (row["dataset_digest"], row["semantic_tag"]) == ("5f1c", "v1.2.3")
    assert (row["run_url"], row["registry_url"]) == ("https://ci.example/jobs/7", "")
    assert (row["created_by"], row["warmup"]) == ("carl", WARMUP)
    assert row["signature"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert Path(ModelVersion.objects.get().artifact_path).read_bytes() == onnx
    assert [path.name for path in (artifacts / ".uploads").iterdir()] == []
    assert AuditEntry.objects.get().target == "digits:1"


def test_a_duplicate_is_refused_and_other_metadata_is_another_version(onnx: bytes) -> None:
    client = caller()
    upload(client, onnx, metrics={"accuracy": 0.97})
    again = upload(client, onnx, metrics={"accuracy": 0.97})
    assert (again.status_code, again.json()["error"]["detail"]["number"]) == (409, 1)
    assert "it is digits:1" in message_of(again)
    assert upload(client, onnx, metrics={"accuracy": 0.98}).json()["number"] == 2


def test_a_number_is_above_all_that_are_known(onnx: bytes) -> None:
    model = RegisteredModel.objects.create(name="digits")
    make_version(model, 3, registry_number=5)
    RefusedImport.objects.create(model_name="digits", number=7, reason="no ONNX flavour")
    assert upload(caller(), onnx).json()["number"] == 8


def test_mlflow_reaching_an_uploads_number_loses_neither(mlflow: Mlflow, onnx: bytes) -> None:
    uploaded = upload(caller(), onnx).json()
    assert uploaded["number"] == 1
    assert sync_registry().imported == ("digits:1", "digits:2")
    numbers = ModelVersion.objects.order_by("number").values_list("number", "registry_number")
    assert list(numbers) == [(1, None), (2, 1), (3, 2)]
    candidate = ModelVersion.objects.get(aliases__name="candidate")
    assert candidate.number == 3
    assert ModelVersion.objects.get(number=1).artifact_sha256 == uploaded["artifact_sha256"]
    assert sync_registry().imported == ()


def test_a_repeated_request_with_the_same_key_registers_once(onnx: bytes) -> None:
    client = caller()
    first, again = (upload(client, onnx, headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert ModelVersion.objects.count() == 1


@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "k"}])
def test_a_file_beyond_the_limit_is_413_and_leaves_nothing(
    onnx: bytes, settings: Any, artifacts: Path, key: dict[str, str]
) -> None:
    settings.ARTIFACT_BYTES_MAX = 10_000
    answer = upload(caller(), onnx, headers=key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert "10,000 bytes" in message_of(answer)
    assert not RegisteredModel.objects.exists()
    assert [path.name for path in (artifacts / ".uploads").iterdir()] == []


def test_a_too_large_content_length_is_refused(settings: Any, artifacts: Path) -> None:
    settings.ARTIFACT_BYTES_MAX = 10_000
    answer = upload(caller(), bytes(FORM_BYTES_MAX + 10_001))
    assert answer.status_code == 413
    assert not (artifacts / ".uploads").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metrics": "{"}, "metrics: "),
        ({"metrics": {"a": "b"}}, "metrics: 'a' is not a finite number"),
        ({"semantic_tag": "one two"}, "semantic_tag: "),
        ({"run_url": "javascript:alert(1)"}, "run_url: "),
        ({"warmup": [[{"name": "y"}]]}, "Warm-up request 1"),
        ({"name": "a b"}, "model: the name is not valid in a URL"),
    ],
)
def test_an_invalid_field_is_named(onnx: bytes, values: dict[str, Any], message: str) -> None:
    answer = upload(caller(), onnx, **values)
    assert answer.status_code == 400
    assert message_of(answer).startswith(message)
    assert not RegisteredModel.objects.exists()


def test_a_file_that_cannot_be_served_is_refused_with_the_reason() -> None:
    client = caller()
    answer = upload(client, b"\xff" * 100)
    assert (answer.status_code, "damaged" in message_of(answer)) == (400, True)
    empty = upload(client, b"")
    assert (empty.status_code, "empty" in message_of(empty)) == (400, True)
    assert client.post("/api/v1/models/digits/versions/", {"a": "b"}).status_code == 400
    assert not RegisteredModel.objects.exists()


def test_external_data_is_uploaded_with_its_file(onnx: bytes, tmp_path: Path) -> None:
    apart = tmp_path / "apart.onnx"
    model = onnx_library.load_from_string(onnx)
    onnx_library.save(model, str(apart), save_as_external_data=True, location="weights")
    client, weights = caller(), (tmp_path / "weights").read_bytes()
    alone = upload(client, apart.read_bytes())
    assert (alone.status_code, "weights is missing" in message_of(alone)) == (400, True)
    misnamed = upload(client, apart.read_bytes(), data=("model.onnx", weights))
    assert message_of(misnamed).startswith("external_data: 'model.onnx' is not a valid")
    assert upload(client, apart.read_bytes(), data=("weights", weights)).status_code == 201


def test_an_unauthorized_upload_is_refused_before_the_file_is_read(
    onnx: bytes, artifacts: Path
) -> None:
    assert upload(caller("viewer"), onnx).status_code == 403
    assert upload(Client(), onnx).status_code == 401
    assert not artifacts.exists()


def test_an_operator_of_one_model_registers_for_that_one(onnx: bytes) -> None:
    client = caller(model=RegisteredModel.objects.create(name="digits"))
    assert upload(client, onnx).status_code == 201
    assert upload(client, onnx, name="others").status_code == 403


def test_a_uri_imports_the_data_of_the_mlflow_run(mlflow: Mlflow) -> None:
    answer = register(caller(), "runs:/r/net", "other", dataset_digest="5f1c")
    row = answer.json()
    assert (answer.status_code, row["number"], row["source"]) == (201, 1, "uri")
    assert (row["metrics"], row["dataset_digest"]) == ({"accuracy": 0.9}, "5f1c")
    assert (row["run_id"], row["artifact_uri"]) == ("r", "runs:/r/net")
    assert (row["registry_number"], row["created_by"]) == (None, "carl")


def test_the_uri_of_a_registered_version_imports_it_now(mlflow: Mlflow) -> None:
    client = caller()
    row = register(client, "models:/digits/2", semantic_tag="v2.0.0").json()
    assert (row["number"], row["registry_number"], row["source"]) == (2, 2, "mlflow")
    assert row["semantic_tag"] == "v2.0.0"
    again = register(client, "models:/digits/2")
    assert (again.status_code, again.json()["error"]["detail"]["number"]) == (409, 2)
    assert sync_registry().imported == ("digits:1",)


def test_a_refused_version_may_be_registered_again(mlflow: Mlflow) -> None:
    flavour = mlflow.files["MLmodel"]
    mlflow.files["MLmodel"] = b"flavors: {}"
    sync_registry()
    client = caller()
    assert register(client, "models:/digits/1").status_code == 400
    mlflow.files["MLmodel"] = flavour
    assert register(client, "models:/digits/1").status_code == 201
    assert [row.number for row in RefusedImport.objects.all()] == [2]


@pytest.mark.parametrize(
    ("uri", "status"),
    [
        ("models:/digits/9", 404),
        ("models:/digits/two/3", 404),
        ("s3://bucket/m.onnx", 400),
        ("file:/etc/passwd", 400),
        ("", 400),
    ],
)
def test_an_invalid_uri_is_reported(mlflow: Mlflow, uri: str, status: int) -> None:
    assert register(caller(), uri).status_code == status
    assert not ModelVersion.objects.exists()


def test_an_unreachable_mlflow_is_503(mlflow: Mlflow) -> None:
    mlflow.is_away = True
    assert register(caller(), "models:/digits/1").status_code == 503


def test_an_alias_is_set_listed_and_deleted(onnx: bytes) -> None:
    client = caller()
    upload(client, onnx)
    path = "/api/v1/models/digits/aliases/"
    moved = client.put(f"{path}candidate/", {"version": 1}, content_type="application/json")
    assert (moved.status_code, moved.json()["version"]) == (200, 1)
    assert [row["name"] for row in client.get(path).json()] == ["candidate"]
    assert client.delete(f"{path}candidate/").status_code == 204
    assert client.delete(f"{path}candidate/").status_code == 404


@pytest.mark.parametrize(
    ("alias", "body", "message"),
    [
        ("champion", {"version": 1}, "champion names the stable version"),
        ("candidate", {"version": 9}, "version: digits has no version 9"),
        ("candidate", {}, "version: This field is required"),
        ("v1", {"version": 1}, "'v1' is not a valid alias"),
    ],
)
def test_an_invalid_alias_or_version_is_refused(
    onnx: bytes, alias: str, body: dict[str, int], message: str
) -> None:
    client = caller()
    upload(client, onnx)
    path = f"/api/v1/models/digits/aliases/{alias}/"
    answer = client.put(path, body, content_type="application/json")
    assert answer.status_code == 400
    assert message_of(answer).startswith(message)


def test_a_viewer_cannot_set_an_alias(onnx: bytes) -> None:
    make_version(RegisteredModel.objects.create(name="digits"), 1)
    path = "/api/v1/models/digits/aliases/candidate/"
    answer = caller(None).put(path, {"version": 1}, content_type="application/json")
    assert answer.status_code == 403


def test_a_chunked_form_is_refused_with_the_reason() -> None:
    path, form = "/api/v1/models/digits/versions/", "multipart/form-data; boundary=x"
    answer = caller().generic("POST", path, CONTENT_TYPE=form)
    assert (answer.status_code, "Content-Length" in message_of(answer)) == (400, True)


def test_a_stored_upload_is_readable_by_triton(onnx: bytes) -> None:
    upload(caller(), onnx)
    assert Path(ModelVersion.objects.get().artifact_path).stat().st_mode & 0o444 == 0o444
