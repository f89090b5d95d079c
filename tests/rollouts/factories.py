"""Rows for tests of the pages: a model with deployments, a rollout on its way, its traffic."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import User

from apps.lib.actors import Actor
from apps.lib.clock import database_now
from apps.models.models import (
    Deployment,
    ModelRole,
    ModelVersion,
    RegisteredModel,
    Role,
    ServingCluster,
)
from apps.models.states import DeploymentState
from apps.rollouts.models import (
    Evaluation,
    Instance,
    Plan,
    Rollout,
    ShadowRow,
    TelemetryRow,
)
from apps.rollouts.phases import enter_step, set_phase
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.publication import latest_table
from apps.rollouts.services import start_rollout
from apps.rollouts.states import Phase
from contract.routing import RoutingTable, decode

ANNA = Actor("anna", "127.0.0.1")


def make_person(name: str, role: Role = Role.ADMIN, model: RegisteredModel | None = None) -> Actor:
    """Return who acts as a user with that role on `model` (None: on all)."""
    user, _ = User.objects.get_or_create(username=name)
    ModelRole.objects.get_or_create(user=user, role=role, model=model)
    return Actor(name, "127.0.0.1")


def make_signature(width: int = 64) -> dict[str, Any]:
    return {
        "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, width]}],
        "outputs": [{"name": "label", "datatype": "INT64", "shape": [-1]}],
    }


def make_version(model: RegisteredModel, number: int, **fields: Any) -> ModelVersion:
    defaults: dict[str, Any] = {
        "signature": make_signature(),
        "artifact_uri": "models:/x",
        "artifact_path": "x",
        "artifact_sha256": "0" * 64,
        "artifact_bytes": 1,
        "created_at": database_now(),
    }
    return ModelVersion.objects.create(model=model, number=number, **(defaults | fields))


def place(
    version: ModelVersion, state: str = DeploymentState.READY, reason: str = ""
) -> Deployment:
    cluster, _ = ServingCluster.objects.get_or_create(
        name="local",
        defaults={"endpoints": ["http://triton:8000"], "repository_path": "/x", "is_default": True},
    )
    return Deployment.objects.create(
        version=version, cluster=cluster, state=state, reason=reason, changed_at=database_now()
    )


def make_model(name: str = "digits", versions: int = 3, stable: int | None = 1) -> RegisteredModel:
    """Return a model whose versions are all ready."""
    model = RegisteredModel.objects.create(name=name)
    created = [make_version(model, number) for number in range(1, versions + 1)]
    for version in created:
        place(version)
    if stable is not None:
        model.stable = created[stable - 1]
        model.save()
    return model


def make_plan(name: str = "canary", weights: tuple[int, ...] = (500, 2_500, 10_000)) -> Plan:
    steps = tuple(StepDocument(weight_bp=weight_bp) for weight_bp in weights)
    document = PlanDocument(name=name, steps=steps)
    return save_plan(document=document, is_default=not Plan.objects.exists(), actor=ANNA)


def make_baking(model: RegisteredModel, number: int = 2) -> Rollout:
    """Return a rollout at its first step, whose clock has not started."""
    if not Plan.objects.exists():
        make_plan()
    now, target = database_now(), model.versions.get(number=number)
    rollout = start_rollout(model=model, target=target, actor=ANNA, now=now)
    set_phase(rollout, Phase.PREPARING, "loading", ANNA, now)
    enter_step(rollout, 0, "the target is ready", ANNA, now)
    return rollout


def make_instance(name: str = "i-1", **fields: Any) -> Instance:
    defaults = {"boot": "b", "applied_generation": 99, "reported_at": database_now()}
    return Instance.objects.create(name=name, **(defaults | fields))


def send(
    model: str, version: int, *, at: datetime | None = None, variant: str = "stable", **fields: Any
) -> TelemetryRow:
    """Record one window of a second that ended just now, or at `at`."""
    ended_at = at or database_now() - timedelta(seconds=1)
    defaults: dict[str, Any] = {
        "instance": "i-1",
        "generation": 1,
        "started_at": ended_at - timedelta(seconds=1),
        "interval_started_at": ended_at - timedelta(seconds=1),
        "requests": 60,
        "errors": 0,
        "fallbacks": 0,
        "units": 60,
        "unit_errors": 0,
        "anonymous": 0,
        "anonymous_errors": 0,
        "latency": {"100": 60},
        "assigned": fields.get("units", 60) + fields.get("anonymous", 0),
    }
    return TelemetryRow.objects.create(
        model_name=model,
        version_number=str(version),
        variant=variant,
        ended_at=ended_at,
        **(defaults | fields),
    )


def send_shadow(model: str = "digits", **fields: Any) -> ShadowRow:
    """Record one shadow window of a second that ended just now."""
    ended_at = fields.pop("at", None) or database_now() - timedelta(seconds=1)
    defaults: dict[str, Any] = {
        "instance": "i-1",
        "version_number": "2",
        "stable_number": "1",
        "shadow": "s1",
        "generation": 1,
        "started_at": ended_at - timedelta(seconds=1),
        "compared": 8,
        "rows": 10,
        "flips": 1,
        "beyond_tolerance": 2,
        "largest_difference": 0.25,
        "rank_correlation_sum": 4.5,
        "ranked": 5,
        "errors": 2,
        "dropped": 3,
        "latency": {"100": 8},
    }
    return ShadowRow.objects.create(model_name=model, ended_at=ended_at, **(defaults | fields))


def latest() -> RoutingTable:
    """Return the table that data planes would pull now."""
    table = latest_table()
    assert table is not None
    return decode(bytes(table.document))


def judge(rollout: Rollout, check: str, verdict: str, reason: str, **evidence: Any) -> Evaluation:
    return Evaluation.objects.create(
        rollout=rollout,
        step_index=rollout.step_index,
        check_name=check,
        verdict=verdict,
        reason=reason,
        evidence=evidence,
        at=database_now(),
    )
