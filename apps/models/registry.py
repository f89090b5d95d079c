"""Synchronises versions and aliases from MLflow: a level-triggered reconcile.

Each run compares MLflow's registry with the database and imports what is missing, so a lost webhook
or an outage of MLflow only causes a delay. Versions are immutable: an imported version is never
read again. Versions that cannot be served are refused, and the reason is stored for the page.
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
# The key of the advisory lock of runs; any constant.
SYNC_LOCK = 0x1E710D
SYNC_WAIT_S = 10.0
# A run stops after this number of versions that could not be read now.
UNREADABLE_MAX = 3
# Each of them is retried after RETRY_S, and twice as long after each further failure.
RETRY_S = 10
RETRY_S_MAX = 3_600
# The maximum length of a stored name from MLflow.
NAME_SHOWN = 300


@dataclass(frozen=True)
class SyncReport:
    """The result of one sync. `imported`, `refused` and `waiting` (could not be read now) are
    `name:number` in MLflow, `aliases` counts changes here, `pushed` are `name@alias` in MLflow."""

    imported: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    aliases: int = 0
    waiting: tuple[str, ...] = ()
    pushed: tuple[str, ...] = ()

    @property
    def has_news(self) -> bool:
        return any((self.imported, self.refused, self.aliases, self.waiting, self.pushed))


def sync_registry(*, is_by_hand: bool = False) -> SyncReport:
    """Synchronise with MLflow. Raises Unavailable if MLflow does not respond.

    `is_by_hand`: a person waits, so versions that wait for their next attempt are tried at once.
    """
    with connect() as client:
        listed_at = timezone.now()
        models = {model.name: model for model in client.models()}
        imported, refused, waiting = _import_missing(client, models, is_by_hand)
        if imported:
            # Imports may take minutes: list the aliases again.
            listed_at = timezone.now()
            models = {model.name: model for model in client.models()}
        moved = copy_aliases(models, listed_at)
        pushed = push_aliases(client, models)
    return SyncReport(tuple(imported), tuple(refused), moved, tuple(waiting), pushed)


def sync_now() -> SyncReport:
    """Synchronise for a waiting person; one sync at a time, so at most one web thread is busy.

    Raises:
        Conflict: another sync runs and does not end within `SYNC_WAIT_S`.
        Unavailable: MLflow does not respond.
    """
    until = monotonic() + SYNC_WAIT_S
    while True:
        # A sync without changes takes a moment; one that reads files takes minutes.
        with try_lock(SYNC_LOCK) as is_locked:
            if is_locked:
                return sync_registry(is_by_hand=True)
        if monotonic() > until:
            raise Conflict("Another sync with MLflow is running; its results will appear soon.")
        sleep(0.1)


def _import_missing(
    client: MlflowClient, models: dict[str, RegistryModel], is_by_hand: bool
) -> tuple[list[str], list[str], list[str]]:
    """Return the imported, the refused and the unreadable versions as `name:number`."""
    imported: list[str] = []
    refused: list[str] = []
    waiting: list[str] = []
    known = _settled_versions(is_by_hand)
    retired = _retired_models()
    # Oldest first, so that the numbers are in order.
    for version in sorted(client.versions(), key=lambda item: (item.name, item.number)):
        if version.name in retired:
            continue
        if (version.name[:NAME_SHOWN], version.number) in known or not version.is_ready:
            continue
        label = f"{version.name}:{version.number}"
        try:
            import_version(client, models.get(version.name), version)
            imported.append(label)
        except Conflict:
            # Another run imported it meanwhile.
            continue
        except (Invalid, NotFound, TooLarge) as error:
            # A version without files must not block the others.
            _refuse(version, error.message)
            refused.append(label)
        except Exception as error:
            # Nor must an unexpected error: the version is retried with growing pauses.
            _postpone(version, error)
            waiting.append(label)
            if len(waiting) == UNREADABLE_MAX or _is_out_of_time(error):
                break
    return imported, refused, waiting


def _is_out_of_time(error: Exception) -> bool:
    # Imported here: the web starts without Celery.
    from celery.exceptions import SoftTimeLimitExceeded

    return isinstance(error, SoftTimeLimitExceeded)


def _settled_versions(is_by_hand: bool) -> set[tuple[str, int | None]]:
    """Return the versions to skip: imported, refused, and waiting for their next attempt."""
    served = ModelVersion.objects.exclude(registry_number=None)
    refused = RefusedImport.objects.filter(retry_at=None)
    if not is_by_hand:
        refused |= RefusedImport.objects.filter(retry_at__gt=timezone.now())
    return {
        *served.values_list("model__name", "registry_number"),
        *refused.values_list("model_name", "number"),
    }


def _retired_models() -> set[str]:
    """Return the names of archived and deleted models, which MLflow may still have."""
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
    """Download, inspect and record one version; `facts` override the data of MLflow.

    Raises:
        Invalid: it cannot be served; nothing was recorded.
        Conflict: it is registered already.
        Unavailable: MLflow does not respond; nothing was recorded.
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
        known = {**_facts(version, run), "warmup": warmup}
        new = NewVersion(
            model_name=version.name,
            model_description=without_null(model.description) if model else "",
            artifact=artifact,
            source=ModelVersion.Source.MLFLOW,
            registry_number=version.number,
            artifact_uri=root,
            created_by=without_null(run.user or version.user)[:150],
            created_at=datetime.fromtimestamp(version.created_at_ms / 1_000, UTC),
            facts=without_null(known) | facts,
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
    """Return the columns of a version that come from its training run."""
    return {
        "metrics": run.metrics,
        "parameters": run.parameters,
        "dataset_digest": run.dataset_digest,
    }


def without_null(value: Any) -> Any:
    """Remove NUL from text, also in lists and dictionaries: PostgreSQL cannot store it."""
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
    _store_refusal(version, reason, attempts=0, retry_at=None)


def _postpone(version: RegistryVersion, error: Exception) -> None:
    """Store why a version could not be read, and delay its next attempt."""
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
    _store_refusal(version, reason, attempts=attempts, retry_at=retry_at)


def _store_refusal(version: RegistryVersion, reason: str, **facts: Any) -> None:
    RefusedImport.objects.update_or_create(
        model_name=version.name[:NAME_SHOWN],
        number=version.number,
        defaults={"reason": without_null(reason), **facts},
    )
