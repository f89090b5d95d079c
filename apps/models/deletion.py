"""Completes deletions: deletes the files of unloaded versions and keeps their rows for the history.

Level-triggered and repeatable: the next run completes what a killed worker left. If the files of a
version cannot be deleted, its page shows why, and other versions are not delayed.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from django.conf import settings
from django.db import transaction

from apps.lib.actors import INTERLOCK
from apps.lib.clock import database_now
from apps.models.archivable import Retirable
from apps.models.audit import record_audit
from apps.models.models import SERVING_SETTINGS, ModelVersion, RegisteredModel, ServingCluster
from apps.models.repository import triton_name
from apps.models.states import (
    MODEL_TRANSITIONS,
    VERSION_TRANSITIONS,
    DeploymentState,
    RegistryState,
)

log = logging.getLogger(__name__)

PROBLEM_MAX = 1_000


def finish_deletions() -> int:
    """Complete the deletions that are possible now; return the number of versions and models."""
    count = 0
    for version in ModelVersion.objects.filter(state=RegistryState.DELETING).select_related(
        "model"
    ):
        count += _try_delete(version)
    # A model is deleted after all of its versions.
    for model in RegisteredModel.objects.filter(state=RegistryState.DELETING):
        if not model.versions.exclude(state=RegistryState.DELETED).exists():
            count += _mark_deleted(model)
    return count


def _try_delete(version: ModelVersion) -> bool:
    if problem := _pending_unload(version):
        return _set_problem(version, problem)
    try:
        _delete_files(version)
    except OSError as error:
        log.warning("version.files_kept %s: %s", version, error)
        return _set_problem(version, f"its files cannot be deleted: {error}")
    return _mark_deleted(version)


def _pending_unload(version: ModelVersion) -> str:
    left = version.deployments.exclude(state=DeploymentState.ABSENT).select_related("cluster")
    places = [f"{row.cluster.name} ({row.reason or row.state})" for row in left]
    return f"it is still loaded on {', '.join(places)}" if places else ""


def _set_problem(version: ModelVersion, problem: str) -> bool:
    if version.state_problem != problem:
        ModelVersion.objects.filter(pk=version.pk).update(state_problem=problem[:PROBLEM_MAX])
    return False


def _delete_files(version: ModelVersion) -> None:
    """Delete the version's directory in each cluster's repository, and the stored artifact.

    An artifact outside of INTERLOCK_ARTIFACT_DIR is not deleted.
    """
    for cluster in ServingCluster.objects.all():
        _delete_tree(Path(cluster.repository_path) / triton_name(version))
    place = Path(settings.ARTIFACT_DIR) / version.model.name / str(version.number)
    if Path(version.artifact_path).parent.resolve() == place.resolve():
        _delete_tree(place)


def _delete_tree(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        # An interrupted run deleted it before, or it was never placed there.
        return


@transaction.atomic
def _mark_deleted(row: Retirable) -> bool:
    """Change `deleting` to `deleted` exactly once, also if several workers try."""
    locked = type(row)._default_manager.select_for_update(of=("self",)).get(pk=row.pk)
    if locked.state != RegistryState.DELETING:
        return False
    is_model = isinstance(locked, RegisteredModel)
    also = _default_settings() if is_model else {}
    locked.save_state(
        MODEL_TRANSITIONS if is_model else VERSION_TRANSITIONS,
        RegistryState.DELETED,
        # The user and the reason of the deletion stay on its page.
        actor=locked.actor,
        now=database_now(),
        reason=locked.state_reason,
        **also,
    )
    what = "model" if is_model else "version"
    record_audit(actor=INTERLOCK, action=f"{what}.deleted", target=str(locked))
    log.info("%s.deleted %s", what, locked)
    return True


def _default_settings() -> dict[str, object]:
    """Return the default serving settings, for a later model with the same name."""
    fields = {name: RegisteredModel._meta.get_field(name) for name in SERVING_SETTINGS}
    return {name: field.get_default() for name, field in fields.items()}  # type: ignore[union-attr]
