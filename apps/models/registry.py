"""Brings versions and aliases from MLflow into our tables: a level-triggered reconcile.

Each run compares what MLflow has with what we have and imports what is missing, so that a lost
webhook or an MLflow that was away costs a delay and nothing else. Versions are immutable: what was
imported is never read again. What cannot be served is refused, with the reason kept for the page.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from django.conf import settings
from django.db import transaction

from apps.lib.errors import Invalid, NotFound
from apps.models.artifacts import MODEL_FILE, Artifact, inspect_onnx, read_mlflow_model
from apps.models.mlflow import MlflowClient, RegistryModel, RegistryVersion, connect
from apps.models.models import (
    NAME_PATTERN,
    NAME_RULE,
    Alias,
    ModelVersion,
    RefusedImport,
    RegisteredModel,
)
from apps.models.warmup import Request, read_warmup

# The alias that we own: it names the stable version, and MLflow's is not copied over it.
CHAMPION = "champion"
SEMANTIC_TAG = "version"


@dataclass(frozen=True)
class SyncReport:
    """What one reconcile did: `name:number` of the imported and the refused, aliases moved."""

    imported: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    aliases: int = 0


def sync_registry() -> SyncReport:
    """Import what MLflow has and we have not. Raises Unavailable when MLflow does not answer."""
    with connect() as client:
        models = {model.name: model for model in client.models()}
        imported, refused = [], []
        known = _known_versions()
        # Oldest first, so that a model's history reads in order.
        for version in sorted(client.versions(), key=lambda item: (item.name, item.number)):
            if (version.name, version.number) in known or not version.is_ready:
                continue
            try:
                import_version(client, models.get(version.name), version)
                imported.append(f"{version.name}:{version.number}")
            except (Invalid, NotFound) as error:
                # A version whose files are gone must not keep the others out.
                _refuse(version, error.message)
                refused.append(f"{version.name}:{version.number}")
    return SyncReport(tuple(imported), tuple(refused), _copy_aliases(models))


def _known_versions() -> set[tuple[str, int]]:
    served = ModelVersion.objects.values_list("model__name", "number")
    refused = RefusedImport.objects.values_list("model_name", "number")
    return {*served, *refused}


def import_version(
    client: MlflowClient, model: RegistryModel | None, version: RegistryVersion
) -> ModelVersion:
    """Download, inspect and record one version.

    Raises:
        Invalid: it cannot be served; nothing was recorded.
        Unavailable: MLflow stopped answering; nothing was recorded.
    """
    if not re.match(NAME_PATTERN, version.name):
        raise Invalid(f"its model's name cannot stand in a URL; a name has {NAME_RULE}")
    root = client.artifact_root(version.name, version.number)
    settings.ARTIFACT_DIR.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.ARTIFACT_DIR, prefix=".import-") as scratch:
        directory = Path(scratch)
        client.download(root, directory, settings.ARTIFACT_BYTES_MAX)
        artifact = inspect_onnx(read_mlflow_model(directory))
        warmup = read_warmup(directory, artifact.signature)
        return _record(client, model, version, root, artifact, warmup)


@transaction.atomic
def _record(
    client: MlflowClient,
    model: RegistryModel | None,
    version: RegistryVersion,
    root: str,
    artifact: Artifact,
    warmup: list[Request],
) -> ModelVersion:
    run = client.run(version.run_id) if version.run_id else None
    owner, _ = RegisteredModel.objects.get_or_create(
        name=version.name, defaults={"description": model.description if model else ""}
    )
    return ModelVersion.objects.create(
        model=owner,
        number=version.number,
        semantic_tag=version.tags.get(SEMANTIC_TAG, "")[:50],
        description=version.description,
        signature=artifact.signature,
        batched=artifact.batched,
        warmup=warmup,
        artifact_uri=root,
        artifact_path=str(_keep(artifact, owner.name, version.number)),
        artifact_sha256=artifact.sha256,
        artifact_bytes=artifact.size_bytes,
        metrics=run.metrics if run else {},
        parameters=run.parameters if run else {},
        tags=version.tags,
        dataset_digest=run.dataset_digest if run else "",
        run_id=version.run_id,
        created_by=run.user if run else "",
        created_at=datetime.fromtimestamp(version.created_at_ms / 1_000, UTC),
    )


def _keep(artifact: Artifact, name: str, number: int) -> Path:
    """Move the file to its place for good; a crash before the commit leaves one to overwrite."""
    directory = Path(settings.ARTIFACT_DIR) / name / str(number)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / MODEL_FILE
    shutil.move(artifact.path, path)
    return path


def _refuse(version: RegistryVersion, reason: str) -> None:
    RefusedImport.objects.update_or_create(
        model_name=version.name[:300], number=version.number, defaults={"reason": reason}
    )


@transaction.atomic
def _copy_aliases(models: dict[str, RegistryModel]) -> int:
    """Make our aliases those of MLflow, except `champion`; return how many moved or went."""
    moved = 0
    for owner in RegisteredModel.objects.filter(name__in=models):
        wanted = {k: v for k, v in models[owner.name].aliases.items() if k != CHAMPION}
        ours = {a.name: a for a in owner.aliases.select_related("version")}
        versions = {v.number: v for v in owner.versions.filter(number__in=wanted.values())}
        for name, number in wanted.items():
            alias = ours.get(name)
            if number in versions and (alias is None or alias.version.number != number):
                Alias.objects.update_or_create(
                    model=owner, name=name, defaults={"version": versions[number]}
                )
                moved += 1
        gone = [a.pk for n, a in ours.items() if n not in wanted and n != CHAMPION]
        moved += Alias.objects.filter(pk__in=gone).delete()[0]
    return moved
