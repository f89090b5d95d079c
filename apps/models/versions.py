"""Records versions, wherever they come from, and gives each its number.

An upload takes the next number that nobody has: no version here, none of MLflow's, and none that
was refused. Should MLflow reach that number later, both stay: the upload keeps its number, and
MLflow's version gets the next free one here, with its number there in `registry_number`. A deleted
version keeps its row, and with it its number.
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

# Where files are while they are looked at, in the directory of the artifacts.
IMPORT_PREFIX = ".import-"
UPLOADS = ".uploads"
REGISTRATIONS = ".registrations"
SCRATCH_KEPT_S = 86_400
# What makes two versions of the same bytes the same version; warm-up may change later.
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
    """A version to be recorded: an inspected artifact, where it is from and what is known of it."""

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
    """Raise Invalid when a model cannot have that name."""
    fault = model_name_fault(name)
    if fault is not None:
        raise Invalid(f"its model's name cannot stand in a URL: {fault}", field="model")


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a directory on the file system of the artifacts, so that keeping a file is a rename."""
    settings.ARTIFACT_DIR.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.ARTIFACT_DIR, prefix=IMPORT_PREFIX) as name:
        yield Path(name)


def sweep_scratch(now_s: float) -> int:
    """Delete what a killed process left half done a day ago; return how much that was."""
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
        # Its owner was about to take it away.
        return 0.0


@transaction.atomic
def add_version(new: NewVersion, *, actor: Actor) -> ModelVersion:
    """Record one version and keep its file; the model is made with its first version.

    Raises:
        Conflict: it is here already: MLflow's of that number, or the same bytes with the same
            metadata. `number` of the error's detail is that version's. Or the model is archived.
    """
    defaults = {"description": new.model_description}
    made, _ = RegisteredModel.objects.get_or_create(name=new.model_name, defaults=defaults)
    # Whoever adds a version to a model takes turns here, so that a number is given once.
    model = RegisteredModel.objects.select_for_update(of=("self",)).get(pk=made.pk)
    _open(model, new, actor)
    _refuse_repetition(model, new)
    number = _number(model, new.registry_number)
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
        # It was refused before, and somebody tried again.
        RefusedImport.objects.filter(model_name=model.name, number=new.registry_number).delete()
    _audit(version, actor)
    return version


def require_open(model: RegisteredModel | None) -> None:
    """Raise Conflict when the model takes no version: it is archived, or is being deleted."""
    if model is None or model.state in {RegistryState.ACTIVE, RegistryState.DELETED}:
        return
    then = ": restore it first" if model.is_archived else ": try again when that has ended"
    raise Conflict(f"{model.name} is {model.state}{then}.", state=model.state)


def _open(model: RegisteredModel, new: NewVersion, actor: Actor) -> None:
    """Refuse a version of an archived model; make one that was deleted anew."""
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


def _refuse_repetition(model: RegisteredModel, new: NewVersion) -> None:
    versions = model.versions.order_by("number")
    if new.registry_number is not None:
        found = versions.filter(registry_number=new.registry_number).first()
        told = f"Version {new.registry_number} of {model.name} in MLflow is here already"
    else:
        same = {name: new.facts[name] for name in IDENTITY if name in new.facts}
        kept = versions.kept()
        found = kept.filter(artifact_sha256=new.artifact.sha256, **same).first()
        told = "The same file with the same metadata is registered already"
    if found is not None and not found.is_active:
        told += f" and {found.state}"
    if found is not None:
        raise Conflict(f"{told}: it is {found}.", model=model.name, number=found.number)


def _number(model: RegisteredModel, registry_number: int | None) -> int:
    taken = model.versions.values_list("number", flat=True)
    if registry_number is not None and registry_number not in taken:
        return registry_number
    highest = model.versions.aggregate(ours=Max("number"), theirs=Max("registry_number"))
    refused = RefusedImport.objects.filter(model_name=model.name).aggregate(seen=Max("number"))
    return max(value or 0 for value in (*highest.values(), *refused.values())) + 1


def _keep(artifact: Artifact, name: str, number: int) -> Path:
    """Move the files to their place for good; a crash before the commit leaves one to overwrite."""
    directory = Path(settings.ARTIFACT_DIR) / name / str(number)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / MODEL_FILE
    shutil.move(artifact.path, path)
    # An upload was its owner's alone; Triton may run as somebody else.
    path.chmod(0o644)
    # One that such a crash left would be taken for this version's.
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
