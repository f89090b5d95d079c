"""Archived and deleted models and versions stay so, whatever MLflow has; numbers are unique."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from apps.lib.actors import Actor
from apps.lib.errors import Conflict
from apps.models.aliases import move_alias
from apps.models.artifacts import Artifact
from apps.models.metadata import Metadata
from apps.models.models import Alias, ModelVersion, RegisteredModel, Registration
from apps.models.registration_jobs import submit_uri
from apps.models.registry import sync_registry
from apps.models.states import RegistryState
from apps.models.versions import NewVersion, add_version
from tests.models.registries import Mlflow

pytestmark = pytest.mark.django_db

ANNA = Actor("anna", "127.0.0.1")
SIGNATURE: dict[str, Any] = {"inputs": [], "outputs": []}


@pytest.fixture
def new(tmp_path: Path, settings: Any) -> NewVersion:
    settings.ARTIFACT_DIR = tmp_path / "artifacts"
    path = tmp_path / "m.onnx"
    path.write_bytes(b"x")
    return NewVersion(
        model_name="digits",
        artifact=Artifact(path, "5" * 64, 1, SIGNATURE, True),
        source=ModelVersion.Source.UPLOAD,
        artifact_uri="upload:m.onnx",
        created_by="anna",
        created_at=timezone.now(),
    )


def add(new: NewVersion) -> ModelVersion:
    new.artifact.path.write_bytes(b"x")
    return add_version(new, actor=ANNA)


def set_state(state: RegistryState, of: Any = ModelVersion) -> None:
    of.objects.update(state=state)


def test_the_number_of_a_deleted_version_is_not_reused(new: NewVersion) -> None:
    assert add(new).number == 1
    set_state(RegistryState.DELETED)
    assert add(new).number == 2


def test_the_file_of_an_archived_version_is_a_duplicate(new: NewVersion) -> None:
    add(new)
    set_state(RegistryState.ARCHIVED)
    with pytest.raises(Conflict, match="is registered already and archived: it is digits:1"):
        add(new)


def test_an_archived_model_refuses_versions_and_a_deleted_one_is_activated(
    new: NewVersion,
) -> None:
    add(new)
    set_state(RegistryState.DELETED)
    set_state(RegistryState.ARCHIVED, RegisteredModel)
    with pytest.raises(Conflict, match="digits is archived: restore it first"):
        add(new)
    set_state(RegistryState.DELETING, RegisteredModel)
    with pytest.raises(Conflict, match="digits is deleting: retry after"):
        add(new)
    set_state(RegistryState.DELETED, RegisteredModel)
    version = add(replace(new, model_description="as new"))
    assert (version.number, version.model.state, version.model.description) == (
        2, "active", "as new",
    )  # fmt: skip


def test_a_registration_for_an_archived_model_is_refused_at_once(settings: Any) -> None:
    RegisteredModel.objects.create(name="digits", state=RegistryState.ARCHIVED)
    arguments = {"uri": "models:/digits/3", "metadata": Metadata(), "actor": ANNA}
    with pytest.raises(Conflict, match="digits is archived: restore it first"):
        submit_uri(name="digits", now=timezone.now(), **arguments)
    assert not Registration.objects.exists()


@pytest.mark.parametrize("state", [RegistryState.ARCHIVED, RegistryState.DELETED])
def test_a_sync_restores_nothing(mlflow: Mlflow, state: RegistryState) -> None:
    sync_registry()
    ModelVersion.objects.filter(number=2).update(state=state)
    Alias.objects.all().delete()
    report = sync_registry()
    assert not report.imported
    assert ModelVersion.objects.get(number=2).state == state
    # MLflow's candidate is version 2.
    assert Alias.objects.exists() is (state == RegistryState.ARCHIVED)

    ModelVersion.objects.all().delete()
    RegisteredModel.objects.update(state=state)
    assert not sync_registry().imported
    RegisteredModel.objects.update(state=RegistryState.ACTIVE)
    assert set(sync_registry().imported) == {"digits:1", "digits:2"}


def test_an_alias_cannot_be_set_to_an_archived_version(new: NewVersion, settings: Any) -> None:
    settings.MLFLOW_TRACKING_URI = ""
    version = add(new)
    set_state(RegistryState.ARCHIVED)
    with pytest.raises(Conflict, match="digits:1 is archived: restore it first"):
        move_alias(name="candidate", version=version, actor=ANNA)
