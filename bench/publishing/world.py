"""The database of `bench publication`: models, live rollouts, and their measurements."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection, transaction

from apps.identity.tokens import issue_token
from apps.lib.actors import INTERLOCK
from apps.lib.clock import database_now
from apps.models.models import Deployment, ModelVersion, RegisteredModel, ServingCluster
from apps.models.states import DeploymentState
from apps.rollouts.models import Plan, Rollout
from apps.rollouts.phases import enter_step, set_phase
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plan_templates import TEMPLATES
from apps.rollouts.plans import PlanDocument
from apps.rollouts.publication import one_publication, publish_table
from apps.rollouts.services import start_rollout
from apps.rollouts.states import Phase

SIGNATURE = {
    "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 16]}],
    "outputs": [{"name": "label", "datatype": "INT64", "shape": [-1]}],
}
INTERVAL_S = 10
INSTANCE = "edge"
# The windows per interval, side and instance of a canary at 5 %.
WINDOWS_AN_INTERVAL = 2
MEASURE = """
    INSERT INTO rollouts_telemetryrow (
        instance, model_name, version_number, variant, split, generation, started_at, ended_at,
        interval_started_at, requests, errors, fallbacks, units, unit_errors, anonymous,
        anonymous_errors, cache_hits, assigned, unanswered, assigned_requests, ends, clusters,
        latency
    )
    SELECT 'edge/' || instance, model.name,
           CASE side WHEN 'canary' THEN '2' ELSE '1' END, side, rollout.id::text,
           rollout.generation, begun + part * interval '4 seconds',
           begun + part * interval '4 seconds' + interval '1 second', begun,
           2 * units, 0, 0, units, 0, 0, 0, 0, units, 0, 2 * units,
           json_build_object('answered', 2 * units), '{}',
           json_build_object('100', units, '110', units)
    FROM rollouts_rollout AS rollout JOIN registry_registeredmodel AS model ON model.id = model_id,
         generate_series(1, %(instances)s) AS instance,
         (VALUES ('stable', 38), ('canary', 2)) AS sides(side, units),
         generate_series(%(since)s::timestamptz, %(until)s, interval '10 seconds') AS begun,
         generate_series(0, %(windows)s - 1) AS part
"""


@dataclass(frozen=True)
class Size:
    models: int
    rollouts: int
    instances: int


def make_world(size: Size, since: datetime, until: datetime) -> None:
    """Fill an empty database, with measurements of all intervals from `since` to `until`."""
    with transaction.atomic():
        _make_models(size.models)
        publish_table(reason="the models", actor=INTERLOCK, now=database_now())
    plan = _save_plan(TEMPLATES[0].document)
    with transaction.atomic(), one_publication():
        for model in RegisteredModel.objects.order_by("pk")[: size.rollouts]:
            _start(model, plan)
    measure(size, since, until)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def issue_secret() -> str:
    """Return a new token for the instance of the pollers."""
    return issue_token(instance=INSTANCE, actor=INTERLOCK, now=database_now())[1]


def _make_models(count: int) -> None:
    now = database_now()
    cluster = ServingCluster.objects.create(
        name="main", endpoints=["http://t:8000"], repository_path="/x", is_default=True
    )
    models = RegisteredModel.objects.bulk_create(
        RegisteredModel(name=f"model-{number:04d}") for number in range(count)
    )
    versions = ModelVersion.objects.bulk_create(
        ModelVersion(
            model=model,
            number=number,
            signature=SIGNATURE,
            artifact_uri="none",
            artifact_path="none",
            artifact_sha256="0" * 64,
            artifact_bytes=1,
            created_at=now,
        )
        for model in models
        for number in (1, 2)
    )
    Deployment.objects.bulk_create(
        Deployment(version=version, cluster=cluster, state=DeploymentState.READY, changed_at=now)
        for version in versions
    )
    for model, stable in zip(models, versions[::2], strict=True):
        model.stable = stable
    RegisteredModel.objects.bulk_update(models, ["stable"])


def _save_plan(document: PlanDocument) -> Plan:
    return save_plan(document=document, is_default=True, actor=INTERLOCK)


def _start(model: RegisteredModel, plan: Plan) -> None:
    now = database_now()
    target = model.versions.get(number=2)
    rollout = start_rollout(model=model, target=target, plan=plan, actor=INTERLOCK, now=now)
    set_phase(rollout, Phase.PREPARING, "loading", INTERLOCK, now)
    enter_step(rollout, 0, "the target is ready", INTERLOCK, now)


def measure(size: Size, since: datetime, until: datetime) -> None:
    """Add the measurements of every instance for each live rollout and interval."""
    values = {
        "instances": size.instances,
        "since": since,
        "until": until,
        "windows": WINDOWS_AN_INTERVAL,
    }
    with connection.cursor() as cursor:
        cursor.execute(MEASURE, values)


def interval_before(at: datetime) -> datetime:
    """Return the start of the interval that contains `at`."""
    return at - timedelta(seconds=at.timestamp() % INTERVAL_S)


def let_pass(rollouts: list[Rollout]) -> None:
    """Let the rollouts advance at the next tick, as if bake time and checks had passed."""
    now = database_now()
    for rollout in rollouts:
        for step in rollout.plan_document["steps"]:
            step |= {"checks": [], "requests_min": 0}
        rollout.step_started_at, rollout.step_due_at = now - timedelta(hours=1), now
        # Before all other rollouts that are due.
        rollout.next_check_at = now - timedelta(hours=1)
        rollout.save()
