"""Lists the current uses of a version or model, which must not be unloaded while in use.

Each use is a sentence for people. Apps that depend on this one register their uses with
`add_finder`, once, when they are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from django.db.models import Q, Sum

from apps.models.models import Deployment, LiveSplit, ModelVersion, RegisteredModel, Registration
from apps.models.states import DeploymentState
from apps.rollouts.fleet_status import pins_on, silent_instances
from apps.rollouts.models import TelemetryRow
from apps.rollouts.states import LIVE_PHASES

# A version is in use if it got a request within this time.
VERSION_IDLE = timedelta(minutes=1)
# A model can go out of service only without requests for this time.
MODEL_IDLE = timedelta(minutes=10)

# Returns the uses, by another app, of a version of a model, or of any version (None).
Finder = Callable[[RegisteredModel, ModelVersion | None], list[str]]
_finders: list[Finder] = []


def add_finder(finder: Finder) -> None:
    _finders.append(finder)


def needs_of_version(version: ModelVersion, now: datetime) -> list[str]:
    """Return the current uses of the version.

    With the row of its model locked, the result is valid until the lock is released.
    """
    model = version.model
    return [
        *_as_stable(version, now),
        *_under_way(model, version),
        *_being_loaded(model, version),
        *_recent_requests(model, version, now, VERSION_IDLE),
    ]


def needs_of_service(model: RegisteredModel, now: datetime) -> list[str]:
    """Return why a model cannot be taken out of service now."""
    # A silent instance may serve it without reporting traffic.
    silent = [
        f"instance {instance.name} is silent and may still serve it"
        for instance in silent_instances(now)
    ]
    return [
        *_under_way(model, None),
        *_being_loaded(model, None),
        *pins_on(model.name, now),
        *silent,
        *_recent_requests(model, None, now, MODEL_IDLE),
    ]


def needs_of_model(model: RegisteredModel, now: datetime) -> list[str]:
    """Return why a model cannot be archived or deleted now; it must be out of service."""
    needs = []
    if model.stable is not None:
        needs.append(f"version {model.stable.number} is stable: undeploy the model first")
    if Registration.objects.filter(model_name=model.name, settled_at=None).exists():
        needs.append("a registration of one of its versions is not complete")
    return [
        *needs,
        *_under_way(model, None),
        *_being_loaded(model, None),
        *_recent_requests(model, None, now, VERSION_IDLE),
    ]


def _as_stable(version: ModelVersion, now: datetime) -> list[str]:
    model = version.model
    if model.stable_id == version.pk:
        return [f"it is the stable version of {model.name}"]
    until = model.rollback_until
    if model.previous_stable_id == version.pk and until is not None and until > now:
        return [f"it is kept for an instant rollback until {until:%Y-%m-%d %H:%M} UTC"]
    return []


def _under_way(model: RegisteredModel, version: ModelVersion | None) -> list[str]:
    """Return the rollouts and experiments that use the version, or any version (None)."""
    live = model.rollouts.filter(phase__in=LIVE_PHASES).select_related("target")
    if version is not None:
        live = live.filter(Q(target=version) | Q(baseline=version))
    needs = [f"the rollout to version {each.target.number} is {each.phase}" for each in live]
    for finder in _finders:
        needs += finder(model, version)
    held = LiveSplit.objects.filter(model=model).first()
    if not needs and held and (version is None or version.pk in held.version_ids):
        needs.append("a traffic split of the model uses it")
    return needs


def _being_loaded(model: RegisteredModel, version: ModelVersion | None) -> list[str]:
    """Return the loads in progress: they cannot be cancelled, but end by DEPLOY_WITHIN_S."""
    rows = Deployment.objects.filter(
        version__model=model, state__in=(DeploymentState.LOADING, DeploymentState.WARMING)
    )
    if version is not None:
        rows = rows.filter(version=version)
    rows = rows.select_related("version__model", "cluster").order_by("version__number")
    return [f"{row.version} is {row.state} on {row.cluster.name}" for row in rows]


def _recent_requests(
    model: RegisteredModel, version: ModelVersion | None, now: datetime, idle: timedelta
) -> list[str]:
    rows = TelemetryRow.objects.filter(model_name=model.name, ended_at__gte=now - idle)
    if version is not None:
        rows = rows.filter(version_number=str(version.number))
    counts = rows.aggregate(requests=Sum("requests"), cached=Sum("cache_hits"))
    requests = sum(count or 0 for count in counts.values())
    if not requests:
        return []
    minutes = int(idle.total_seconds() // 60)
    span = "minute" if minutes == 1 else f"{minutes} minutes"
    return [f"it answered {requests:,} request{'s' * (requests != 1)} in the last {span}"]


def recently_requested_versions(now: datetime) -> set[tuple[str, int]]:
    """Return model name and number of the versions with requests in the last minute."""
    rows = TelemetryRow.objects.filter(ended_at__gte=now - VERSION_IDLE)
    rows = rows.filter(Q(requests__gt=0) | Q(cache_hits__gt=0))
    versions = rows.values_list("model_name", "version_number").distinct()
    return {(name, int(number)) for name, number in versions if number.isdecimal()}
