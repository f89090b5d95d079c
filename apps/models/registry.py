"""Brings versions and aliases from MLflow into our tables: a level-triggered reconcile.

Each run compares what MLflow has with what we have and imports what is missing, so that a lost
webhook or an MLflow that was away costs a delay and nothing else. Versions are immutable: what was
imported is never read again. What cannot be served is refused, with the reason kept for the page.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.utils import timezone

from apps.lib.actors import INTERLOCK, Actor
from apps.lib.errors import Conflict, Invalid, NotFound, Unavailable
from apps.models.aliases import copy_aliases, push_aliases
from apps.models.artifacts import inspect_onnx, read_mlflow_model
from apps.models.mlflow import MlflowClient, RegistryModel, RegistryVersion, TrainingRun, connect
from apps.models.models import CHAMPION as CHAMPION
from apps.models.models import ModelVersion, RefusedImport
from apps.models.versions import NewVersion, add_version, check_name, scratch
from apps.models.warmup import read_warmup

log = logging.getLogger(__name__)

SEMANTIC_TAG = "version"
# After so many versions that could not be read now, the rest waits for the next run.
UNREADABLE_MAX = 3


@dataclass(frozen=True)
class SyncReport:
    """What one reconcile did: `name:number` in MLflow of the imported, the refused, and those that
    could not be read now; aliases moved here; `name@alias` of those written to MLflow."""

    imported: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    aliases: int = 0
    waiting: tuple[str, ...] = ()
    pushed: tuple[str, ...] = ()

    @property
    def has_news(self) -> bool:
        return any((self.imported, self.refused, self.aliases, self.waiting, self.pushed))


def sync_registry() -> SyncReport:
    """Import what MLflow has and we have not. Raises Unavailable when MLflow does not answer."""
    with connect() as client:
        listed_at = timezone.now()
        models = {model.name: model for model in client.models()}
        imported, refused, waiting = _import_missing(client, models)
        if imported:
            # Large files take minutes; aliases that old would be compared with ours of now.
            listed_at = timezone.now()
            models = {model.name: model for model in client.models()}
        moved = copy_aliases(models, listed_at)
        pushed = push_aliases(client, models)
    return SyncReport(tuple(imported), tuple(refused), moved, tuple(waiting), pushed)


def _import_missing(
    client: MlflowClient, models: dict[str, RegistryModel]
) -> tuple[list[str], list[str], list[str]]:
    """Return the imported, the refused, and what could not be read now."""
    imported: list[str] = []
    refused: list[str] = []
    waiting: list[str] = []
    known = _known_versions()
    # Oldest first, so that a model's history reads in order.
    for version in sorted(client.versions(), key=lambda item: (item.name, item.number)):
        if (version.name, version.number) in known or not version.is_ready:
            continue
        said = f"{version.name}:{version.number}"
        try:
            import_version(client, models.get(version.name), version)
            imported.append(said)
        except Conflict:
            # Another run brought it in meanwhile.
            continue
        except (Invalid, NotFound) as error:
            # A version whose files are gone must not keep the others out.
            _refuse(version, error.message)
            refused.append(said)
        except Unavailable as error:
            log.warning("registry.unreadable %s: %s", said, error.message)
            waiting.append(said)
            if len(waiting) == UNREADABLE_MAX:
                break
    return imported, refused, waiting


def _known_versions() -> set[tuple[str, int | None]]:
    served = ModelVersion.objects.exclude(registry_number=None)
    refused = RefusedImport.objects.values_list("model_name", "number")
    return {*served.values_list("model__name", "registry_number"), *refused}


def import_version(
    client: MlflowClient,
    model: RegistryModel | None,
    version: RegistryVersion,
    *,
    actor: Actor = INTERLOCK,
    **facts: Any,
) -> ModelVersion:
    """Download, inspect and record one version; `facts` stand in for what MLflow says.

    Raises:
        Invalid: it cannot be served; nothing was recorded.
        Conflict: it is here already.
        Unavailable: MLflow stopped answering; nothing was recorded.
    """
    check_name(version.name)
    root = client.artifact_root(version.name, version.number)
    with scratch() as directory:
        client.download(root, directory, settings.ARTIFACT_BYTES_MAX)
        artifact = inspect_onnx(read_mlflow_model(directory))
        run = client.run(version.run_id) if version.run_id else TrainingRun()
        warmup = read_warmup(directory, artifact.signature) or artifact.warmup
        told = {**_facts(version, run), "warmup": warmup}
        new = NewVersion(
            model_name=version.name,
            model_description=model.description if model else "",
            artifact=artifact,
            source=ModelVersion.Source.MLFLOW,
            registry_number=version.number,
            artifact_uri=root,
            created_by=run.user or version.user,
            created_at=datetime.fromtimestamp(version.created_at_ms / 1_000, UTC),
            facts=told | facts,
        )
        return add_version(new, actor=actor)


def _facts(version: RegistryVersion, run: TrainingRun) -> dict[str, Any]:
    return {
        "semantic_tag": version.tags.get(SEMANTIC_TAG, "")[:50],
        "description": version.description,
        "tags": version.tags,
        "run_id": version.run_id,
        **run_facts(run),
    }


def run_facts(run: TrainingRun) -> dict[str, Any]:
    """Return the columns of a version that its training run fills."""
    return {
        "metrics": run.metrics,
        "parameters": run.parameters,
        "dataset_digest": run.dataset_digest,
    }


def _refuse(version: RegistryVersion, reason: str) -> None:
    RefusedImport.objects.update_or_create(
        model_name=version.name[:300], number=version.number, defaults={"reason": reason}
    )
