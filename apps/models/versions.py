"""Records versions from all sources and assigns their numbers.

An upload gets the next number that no version here, in MLflow or among the refused ones has. If
MLflow reaches that number later, the upload keeps it, and MLflow's version gets the next free one
here; `registry_number` is its number in MLflow. A deleted version keeps its row and its number.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.models.artifacts import DATA_FILE, MODEL_FILE, Artifact
from apps.models.audit import record_audit
from apps.models.models import ModelVersion, RefusedImport, RegisteredModel
from apps.models.states import MODEL_TRANSITIONS, RegistryState
from contract.names import model_name_fault

# Scratch directories in the directory of the artifacts.
IMPORT_PREFIX = ".import-"
UPLOADS = ".uploads"
REGISTRATIONS = ".registrations"
SCRATCH_KEPT_S = 86_400
# Two versions with the same bytes and equal fields are the same; the warm-up may change later.
IDENTITY = (
    "semantic_tag",
    "description",
    "metrics",
    "parameters",
    "dataset_digest",
    "run_url",
)


@dataclass(frozen=True)
class NewVersion:
    """A version to record: an inspected artifact, its origin and its metadata."""

    model_name: str
    artifact: Artifact
    source: ModelVersion.Source
    artifact_uri: str
    created_by: str
    created_at: datetime
    registry_number: int | None = None
    model_description: str = ""
    # Further columns of ModelVersion: metrics, parameters, warmup and the like.
    facts: dict[str, Any] = field(default_factory=dict)


def check_name(name: str) -> None:
    """Raise Invalid if `name` is not a valid model name."""
    fault = model_name_fault(name)
    if fault is not None:
        raise Invalid(f"the name is not valid in a URL: {fault}", field="model")


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a directory on the file system of the artifacts, so that a rename stores a file."""
    settings.ARTIFACT_DIR.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.ARTIFACT_DIR, prefix=IMPORT_PREFIX) as name:
        yield Path(name)


def sweep_scratch(now_s: float) -> int:
    """Delete scratch files of killed processes after one day; return their number."""
    root = Path(settings.ARTIFACT_DIR)
    left = [
        *root.glob(f"{IMPORT_PREFIX}*"),
        *(root / UPLOADS).glob("*"),
        *(root / REGISTRATIONS).glob("*"),
    ]
    old = [path for path in left if _age_s(path, now_s) > SCRATCH_KEPT_S]
    for path in old:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(old)


def _age_s(path: Path, now_s: float) -> float:
    try:
        return now_s - path.lstat().st_mtime
    except FileNotFoundError:
        # Its owner deleted it meanwhile.
        return 0.0


@transaction.atomic
def add_version(new: NewVersion, *, actor: Actor) -> ModelVersion:
    """Record one version and store its file; the first version creates the model.

    Raises:
        Conflict: it is registered already: the same MLflow number, or the same bytes with the same
            metadata; the detail `number` is that version's. Or the model is archived.
    """
    defaults = {"description": new.model_description}
    row, _ = RegisteredModel.objects.get_or_create(name=new.model_name, defaults=defaults)
    # Lock the model: concurrent additions must not assign the same number.
    model = RegisteredModel.objects.select_for_update(of=("self",)).get(pk=row.pk)
    _ensure_active(model, new, actor)
    _refuse_duplicate(model, new)
    number = _next_number(model, new.registry_number)
    version = ModelVersion.objects.create(
        model=model,
        number=number,
        source=new.source,
        registry_number=new.registry_number,
        signature=new.artifact.signature,
        batched=new.artifact.batched,
        artifact_uri=new.artifact_uri,
        artifact_path=str(_keep(new.artifact, model.name, number)),
        artifact_sha256=new.artifact.sha256,
        artifact_bytes=new.artifact.size_bytes,
        trial_ms=new.artifact.trial_ms or None,
        created_by=new.created_by,
        created_at=new.created_at,
        **new.facts,
    )
    if new.registry_number is not None:
        # It may have been refused before.
        RefusedImport.objects.filter(model_name=model.name, number=new.registry_number).delete()
    _audit(version, actor)
    return version


def require_open(model: RegisteredModel | None) -> None:
    """Raise Conflict if the model is archived or being deleted, so it accepts no version."""
    if model is None or model.state in {RegistryState.ACTIVE, RegistryState.DELETED}:
        return
    then = ": restore it first" if model.is_archived else ": retry after the deletion"
    raise Conflict(f"{model.name} is {model.state}{then}.", state=model.state)


def _ensure_active(model: RegisteredModel, new: NewVersion, actor: Actor) -> None:
    """Raise Conflict for an archived model; activate a deleted one again."""
    require_open(model)
    if model.is_active:
        return
    model.save_state(
        MODEL_TRANSITIONS,
        RegistryState.ACTIVE,
        actor=actor,
        now=timezone.now(),
        description=new.model_description,
    )
    record_audit(actor=actor, action="model.made_anew", target=model.name)


def _refuse_duplicate(model: RegisteredModel, new: NewVersion) -> None:
    versions = model.versions.order_by("number")
    if new.registry_number is not None:
        duplicate = versions.filter(registry_number=new.registry_number).first()
        reason = f"Version {new.registry_number} of {model.name} in MLflow is registered already"
    else:
        same = {name: new.facts[name] for name in IDENTITY if name in new.facts}
        kept = versions.kept()
        duplicate = kept.filter(artifact_sha256=new.artifact.sha256, **same).first()
        reason = "The same file with the same metadata is registered already"
    if duplicate is not None and not duplicate.is_active:
        reason += f" and {duplicate.state}"
    if duplicate is not None:
        raise Conflict(f"{reason}: it is {duplicate}.", model=model.name, number=duplicate.number)


def _next_number(model: RegisteredModel, registry_number: int | None) -> int:
    taken = model.versions.values_list("number", flat=True)
    if registry_number is not None and registry_number not in taken:
        return registry_number
    highest = model.versions.aggregate(ours=Max("number"), theirs=Max("registry_number"))
    refused = RefusedImport.objects.filter(model_name=model.name).aggregate(refused=Max("number"))
    return max(value or 0 for value in (*highest.values(), *refused.values())) + 1


def _keep(artifact: Artifact, name: str, number: int) -> Path:
    """Move the files to their final directory; files from a crashed attempt are overwritten."""
    directory = Path(settings.ARTIFACT_DIR) / name / str(number)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / MODEL_FILE
    shutil.move(artifact.path, path)
    # An upload is readable by its owner only; Triton may run as another user.
    path.chmod(0o644)
    # External data from a crashed attempt must not be used.
    (directory / DATA_FILE).unlink(missing_ok=True)
    if artifact.data_path is not None:
        shutil.move(artifact.data_path, directory / DATA_FILE)
        (directory / DATA_FILE).chmod(0o644)
    return path


def _audit(version: ModelVersion, actor: Actor) -> None:
    after: dict[str, Any] = {"source": str(version.source), "sha256": version.artifact_sha256}
    if version.registry_number not in (None, version.number):
        after["number_in_mlflow"] = version.registry_number
    record_audit(actor=actor, action="version.registered", target=str(version), after=after)
