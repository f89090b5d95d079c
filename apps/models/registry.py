"""Brings versions and aliases from MLflow into our tables: a level-triggered reconcile.

Each run compares what MLflow has with what we have and imports what is missing, so that a lost
webhook or an MLflow that was away costs a delay and nothing else. Versions are immutable: what was
imported is never read again. What cannot be served is refused, with the reason kept for the page.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic, sleep
from typing import Any

from django.conf import settings
from django.utils import timezone

from apps.lib.actors import INTERLOCK, Actor
from apps.lib.errors import Conflict, InterlockError, Invalid, NotFound, TooLarge
from apps.models.aliases import copy_aliases, push_aliases
from apps.models.artifacts import inspect_onnx, read_mlflow_model
from apps.models.locks import try_lock
from apps.models.mlflow import MlflowClient, RegistryModel, RegistryVersion, TrainingRun, connect
from apps.models.models import CHAMPION as CHAMPION
from apps.models.models import ModelVersion, RefusedImport, RegisteredModel
from apps.models.states import RegistryState
from apps.models.versions import NewVersion, add_version, check_name, scratch
from apps.models.warmup import read_warmup

log = logging.getLogger(__name__)

SEMANTIC_TAG = "version"
# Any constant: it names the lock that runs take turns on.
SYNC_LOCK = 0x1E710D
SYNC_WAIT_S = 10.0
# After so many versions that could not be read now, the rest waits for the next run.
UNREADABLE_MAX = 3
# … and each of them is tried again after so long, twice as long after each failure.
RETRY_S = 10
RETRY_S_MAX = 3_600
# So much of a foreign name is kept.
NAME_SHOWN = 300


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


def sync_registry(*, is_by_hand: bool = False) -> SyncReport:
    """Import what MLflow has and we have not. Raises Unavailable when MLflow does not answer.

    `is_by_hand`: a person waits for it, so what waits for its next attempt is tried at once.
    """
    with connect() as client:
        listed_at = timezone.now()
        models = {model.name: model for model in client.models()}
        imported, refused, waiting = _import_missing(client, models, is_by_hand)
        if imported:
            # Large files take minutes; aliases that old would be compared with ours of now.
            listed_at = timezone.now()
            models = {model.name: model for model in client.models()}
        moved = copy_aliases(models, listed_at)
        pushed = push_aliases(client, models)
    return SyncReport(tuple(imported), tuple(refused), moved, tuple(waiting), pushed)


def sync_now() -> SyncReport:
    """Sync for a person who waits: one at a time, so that files hold up one web thread at most.

    Raises:
        Conflict: a sync is running and does not end soon.
        Unavailable: MLflow does not answer.
    """
    until = monotonic() + SYNC_WAIT_S
    while True:
        # One that looks and finds nothing new takes a moment; one that reads files takes minutes.
        with try_lock(SYNC_LOCK) as is_ours:
            if is_ours:
                return sync_registry(is_by_hand=True)
        if monotonic() > until:
            raise Conflict("A sync with MLflow is running: what it brings shows here soon.")
        sleep(0.1)


def _import_missing(
    client: MlflowClient, models: dict[str, RegistryModel], is_by_hand: bool
) -> tuple[list[str], list[str], list[str]]:
    """Return the imported, the refused, and what could not be read now."""
    imported: list[str] = []
    refused: list[str] = []
    waiting: list[str] = []
    known = _settled_versions(is_by_hand)
    retired = _retired_models()
    # Oldest first, so that a model's history reads in order.
    for version in sorted(client.versions(), key=lambda item: (item.name, item.number)):
        if version.name in retired:
            continue
        if (version.name[:NAME_SHOWN], version.number) in known or not version.is_ready:
            continue
        said = f"{version.name}:{version.number}"
        try:
            import_version(client, models.get(version.name), version)
            imported.append(said)
        except Conflict:
            # Another run brought it in meanwhile.
            continue
        except (Invalid, NotFound, TooLarge) as error:
            # A version whose files are gone must not keep the others out.
            _refuse(version, error.message)
            refused.append(said)
        except Exception as error:
            # Neither must one that nobody foresaw: it is tried again, more and more seldom.
            _postpone(version, error)
            waiting.append(said)
            if len(waiting) == UNREADABLE_MAX or _is_out_of_time(error):
                break
    return imported, refused, waiting


def _is_out_of_time(error: Exception) -> bool:
    # Imported here: the web starts without Celery.
    from celery.exceptions import SoftTimeLimitExceeded

    return isinstance(error, SoftTimeLimitExceeded)


def _settled_versions(is_by_hand: bool) -> set[tuple[str, int | None]]:
    """Return what is here, what was refused, and what waits for its next attempt."""
    served = ModelVersion.objects.exclude(registry_number=None)
    refused = RefusedImport.objects.filter(retry_at=None)
    if not is_by_hand:
        refused |= RefusedImport.objects.filter(retry_at__gt=timezone.now())
    return {
        *served.values_list("model__name", "registry_number"),
        *refused.values_list("model_name", "number"),
    }


def _retired_models() -> set[str]:
    """Return what somebody archived or deleted here, though MLflow goes on having it."""
    retired = RegisteredModel.objects.exclude(state=RegistryState.ACTIVE)
    return set(retired.values_list("name", flat=True))


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
    if version.problem:
        raise Invalid(version.problem)
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
            model_description=without_null(model.description) if model else "",
            artifact=artifact,
            source=ModelVersion.Source.MLFLOW,
            registry_number=version.number,
            artifact_uri=root,
            created_by=without_null(run.user or version.user)[:150],
            created_at=datetime.fromtimestamp(version.created_at_ms / 1_000, UTC),
            facts=without_null(told) | facts,
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


def without_null(value: Any) -> Any:
    """Return text, also inside of lists and dictionaries, as PostgreSQL takes it: without NUL."""
    match value:
        case str():
            return value.replace("\0", "")
        case dict():
            return {without_null(key): without_null(item) for key, item in value.items()}
        case list():
            return [without_null(item) for item in value]
        case _:
            return value


def _refuse(version: RegistryVersion, reason: str) -> None:
    _note(version, reason, attempts=0, retry_at=None)


def _postpone(version: RegistryVersion, error: Exception) -> None:
    """Show why it could not be read, and leave it alone for a while, so that others get a turn."""
    if isinstance(error, InterlockError):
        reason = error.message
        log.warning("registry.unreadable %s:%d: %s", version.name, version.number, reason)
    else:
        reason = f"{type(error).__name__}: {error}"
        log.error("registry.import_failed %s:%d", version.name, version.number, exc_info=error)
    rows = RefusedImport.objects.filter(model_name=version.name[:NAME_SHOWN], number=version.number)
    attempts = (rows.values_list("attempts", flat=True).first() or 0) + 1
    pause_s = min(RETRY_S * 2 ** min(attempts - 1, 20), RETRY_S_MAX)
    retry_at = timezone.now() + timedelta(seconds=pause_s)
    _note(version, reason, attempts=attempts, retry_at=retry_at)


def _note(version: RegistryVersion, reason: str, **facts: Any) -> None:
    RefusedImport.objects.update_or_create(
        model_name=version.name[:NAME_SHOWN],
        number=version.number,
        defaults={"reason": without_null(reason), **facts},
    )
