"""Run in the environment of a stack: registers the model of the fault tests, without MLflow.

Three versions with one artifact, a metric for outcomes and a plan of one quick step; version 1
becomes stable as soon as the control plane's own ticks have loaded it.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import django
import msgspec

from tests.faults.artifact import SIGNATURE

MODEL = "flowers"
METRIC = "clicked"
PLAN = "quick"
VERSIONS = (1, 2)
# The version whose process a test kills: healing it takes a while, and nobody waits for that.
FRAGILE = 3


def main() -> None:
    """Write the rows into the database; the argument names the ONNX file."""
    django.setup()

    from apps.experiments.models import Metric
    from apps.lib.actors import INTERLOCK
    from apps.lib.clock import database_now
    from apps.models.models import ModelVersion, RegisteredModel
    from apps.models.services import deploy_version
    from apps.rollouts.plan_store import save_plan
    from apps.rollouts.plans import PlanDocument, StepDocument
    from apps.rollouts.services import start_rollout

    artifact = Path(sys.argv[1])
    model = RegisteredModel.objects.create(name=MODEL)
    versions = [
        ModelVersion.objects.create(
            model=model,
            number=number,
            signature=msgspec.to_builtins(SIGNATURE),
            artifact_uri="none",
            artifact_path=str(artifact),
            artifact_sha256=hashlib.sha256(artifact.read_bytes()).hexdigest(),
            artifact_bytes=artifact.stat().st_size,
            created_at=database_now(),
        )
        for number in (*VERSIONS, FRAGILE)
    ]
    Metric.objects.create(name=METRIC, kind=Metric.Kind.PROPORTION)
    step = StepDocument(weight_bp=5_000, bake_s=1, checks=("error-rate",))
    plan = PlanDocument(name=PLAN, steps=(step,), interval_s=1, extend_max=60, margin_bp=500)
    save_plan(document=plan, description="", is_default=False, actor=INTERLOCK)
    for version in versions:
        deploy_version(version=version, actor=INTERLOCK, now=database_now())
    start_rollout(model=model, target=versions[0], actor=INTERLOCK, now=database_now())


if __name__ == "__main__":
    main()
