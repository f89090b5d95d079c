"""Ends deletions: once a version has left its servers its files go, and a row for history stays.

Level-triggered and repeatable: whatever a killed worker left is deleted by the next turn. A version
whose files cannot be deleted says why on its page, and keeps no other one waiting.
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
    """Delete what may go now; return how many versions and models that were."""
    ended = 0
    for version in ModelVersion.objects.filter(state=RegistryState.DELETING).select_related(
        "model"
    ):
        ended += _guarded(version)
    # After its versions: a model's directory goes when the last of them has.
    for model in RegisteredModel.objects.filter(state=RegistryState.DELETING):
        if not model.versions.exclude(state=RegistryState.DELETED).exists():
            ended += _end(model)
    return ended


def _guarded(version: ModelVersion) -> bool:
    if problem := _waits_for(version):
        return _tell(version, problem)
    try:
        _delete_files(version)
    except OSError as error:
        log.warning("version.files_kept %s: %s", version, error)
        return _tell(version, f"its files cannot be deleted: {error}")
    return _end(version)


def _waits_for(version: ModelVersion) -> str:
    left = version.deployments.exclude(state=DeploymentState.ABSENT).select_related("cluster")
    places = [f"{row.cluster.name} ({row.reason or row.state})" for row in left]
    return f"it has not left {', '.join(places)} yet" if places else ""


def _tell(version: ModelVersion, problem: str) -> bool:
    if version.state_problem != problem:
        ModelVersion.objects.filter(pk=version.pk).update(state_problem=problem[:PROBLEM_MAX])
    return False


def _delete_files(version: ModelVersion) -> None:
    """Delete the version's directory in each cluster's repository, and the stored artifact.

    A file that was registered where it lay, outside of our directory, is not ours to delete.
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
        # Deleted before, by a turn that did not get to say so, or never placed there.
        return


@transaction.atomic
def _end(row: Retirable) -> bool:
    """Turn `deleting` into `deleted`, once, whoever else tries to."""
    held = type(row)._default_manager.select_for_update(of=("self",)).get(pk=row.pk)
    if held.state != RegistryState.DELETING:
        return False
    is_model = isinstance(held, RegisteredModel)
    also = _fresh_settings() if is_model else {}
    held.save_state(
        MODEL_TRANSITIONS if is_model else VERSION_TRANSITIONS,
        RegistryState.DELETED,
        # Who asked for it, and why, stays on its page.
        actor=held.actor,
        now=database_now(),
        reason=held.state_reason,
        **also,
    )
    what = "model" if is_model else "version"
    record_audit(actor=INTERLOCK, action=f"{what}.deleted", target=str(held))
    log.info("%s.deleted %s", what, held)
    return True


def _fresh_settings() -> dict[str, object]:
    """A model that is registered under the same name later begins like any other one."""
    fields = {name: RegisteredModel._meta.get_field(name) for name in SERVING_SETTINGS}
    return {name: field.get_default() for name, field in fields.items()}  # type: ignore[union-attr]
