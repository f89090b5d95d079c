"""Registers a version manually: from an uploaded ONNX file, or from a URI, as CI does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings

from apps.lib.actors import Actor
from apps.lib.errors import Invalid
from apps.models.artifacts import MODEL_FILE, inspect_onnx
from apps.models.metadata import Metadata
from apps.models.mlflow import TrainingRun, connect
from apps.models.models import ModelVersion
from apps.models.registry import import_version, run_facts
from apps.models.sources import Reference, fetch_model, find_onnx, read_reference
from apps.models.versions import NewVersion, add_version, check_name, scratch
from apps.models.warmup import WARMUP_FILE, check_warmup, read_warmup

Source = ModelVersion.Source
URI_LENGTH_MAX = 1_000
StageReporter = Callable[[str], None]


def ignore_stage(stage: str) -> None:
    """Discard the stage."""


def register_directory(
    *,
    name: str,
    uri: str,
    directory: Path,
    metadata: Metadata,
    actor: Actor,
    now: datetime,
    report_stage: StageReporter = ignore_stage,
) -> ModelVersion:
    """Register the ONNX file of `directory` as a new version; create the model `name` if needed.

    External data is in the same directory. The files are moved: a copy would take as long as the
    upload, and onnx refuses hard links. `report_stage` is called with each stage.

    Raises:
        Invalid: the name, the metadata or a file is not valid; nothing was recorded.
        Conflict: the same file with the same metadata is registered already.
    """
    check_name(name)
    path = directory / MODEL_FILE
    if not path.is_file():
        raise Invalid("its file does not exist any more; upload it again")
    facts = metadata.facts()
    return _record(name, Source.UPLOAD, uri, path, facts, metadata, actor, now, report_stage)


def register_uri(
    *,
    name: str,
    uri: str,
    metadata: Metadata,
    actor: Actor,
    now: datetime,
    report_stage: StageReporter = ignore_stage,
) -> ModelVersion:
    """Register the model at `uri` as a new version; import MLflow's versions of the same model.

    Data of the MLflow run fills the fields that `metadata` lacks.

    Raises:
        Invalid: the name, the URI, the metadata or the model is not valid; nothing was recorded.
        NotFound: the URI does not exist.
        Conflict: it is registered already.
        Unavailable: the server does not respond.
    """
    check_name(name)
    if len(uri) > URI_LENGTH_MAX:
        raise Invalid(f"at most {URI_LENGTH_MAX} characters.", field="uri")
    facts = metadata.facts()
    reference = read_reference(uri)
    report_stage("fetching the files")
    if reference is not None and reference.name == name:
        return _import(reference, facts, metadata, actor)
    with scratch() as directory:
        run_id = fetch_model(uri, directory)
        known = {**run_facts(_run(run_id)), "run_id": run_id} if run_id else {}
        path = find_onnx(directory)
        facts = known | facts
        return _record(name, Source.URI, uri, path, facts, metadata, actor, now, report_stage)


def _import(
    reference: Reference, facts: dict[str, Any], metadata: Metadata, actor: Actor
) -> ModelVersion:
    if metadata.warmup is not None:
        raise Invalid(
            "not allowed for a version of MLflow; change it after the import.", field="warmup"
        )
    with connect() as client:
        version = client.version(reference.name, reference.named)
        if not version.is_ready:
            raise Invalid(f"{version.name}:{version.number} is not ready in MLflow yet.")
        model = next((m for m in client.models() if m.name == version.name), None)
        return import_version(client, model, version, actor=actor, **facts)


def _run(run_id: str) -> TrainingRun:
    with connect() as client:
        return client.run(run_id)


def _record(
    name: str,
    source: Source,
    uri: str,
    path: Path,
    facts: dict[str, Any],
    metadata: Metadata,
    actor: Actor,
    now: datetime,
    report_stage: StageReporter,
) -> ModelVersion:
    report_stage(f"inspecting the file, for at most {settings.INSPECT_TIMEOUT_S} s")
    artifact = inspect_onnx(path)
    report_stage("recording the version")
    if metadata.warmup is not None:
        warmup = check_warmup(metadata.warmup, artifact.signature)
    else:
        warmup = read_warmup(path.parent, artifact.signature) or artifact.warmup
    new = NewVersion(
        model_name=name,
        artifact=artifact,
        source=source,
        artifact_uri=uri,
        created_by=actor.name,
        created_at=now,
        facts={**DEFAULTS, **facts, "warmup": warmup},
    )
    return add_version(new, actor=actor)


# Defaults, so that the same bytes without metadata are the same version.
DEFAULTS: dict[str, Any] = {
    "metrics": {},
    "parameters": {},
    "dataset_digest": "",
    "semantic_tag": "",
    "description": "",
    "run_url": "",
}


def plain_name(name: str) -> str:
    """Return the name of an external data file. Raises Invalid for reserved names and paths."""
    if name in {"", ".", "..", MODEL_FILE, WARMUP_FILE} or Path(name).name != name:
        raise Invalid(
            f"{name[:100]!r} is not a valid external data file name.", field="external_data"
        )
    return name
